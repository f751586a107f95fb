"""Two processes: distillation under DistributedDataParallel on CPUs, one rank without boxes.

The workers are fresh processes that import this file, so it imports nothing of the tests. Their
start takes longer than all of their work, so one pair of them trains every family in turn.
"""

import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT_S = 240  # of which nearly all is Python's and PyTorch's start
FAMILIES = "dino", "dab", "deformable", "refine", "two_stage", "conditional", "ddq", "detr"


def work(rank, cfgs, folder, items):
    """Train models one after the other, on one of two ranks."""
    torch.set_num_threads(1)
    import kd_detr_mmdet  # noqa: F401  isort: skip  (before mmdet's models)
    from mmdet.utils import register_all_modules

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(items)
    )
    register_all_modules()
    for name, cfg in cfgs.items():
        torch.save(train(cfg, items[rank]), f"{folder}/{name}.{rank}.pth")
    dist.destroy_process_group()


def train(cfg, items):
    """Three optimiser steps of one rank; returns what it saw."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import build_optim_wrapper

    torch.manual_seed(0)  # the same on every rank, as a user may set it
    kd = MODELS.build(cfg)
    kd.init_weights()
    model = MMDistributedDataParallel(kd, find_unused_parameters=False, broadcast_buffers=False)
    optimizer = build_optim_wrapper(model, dict(optimizer=dict(type="AdamW", lr=1e-4)))
    draw, points = kd.point_generator.general, []

    def general(*args):
        drawn = draw(*args)
        points.append(drawn.boxes)
        return drawn

    kd.point_generator.general = general
    steps, losses = [], []
    for _ in range(3):
        data = demo_mm_inputs(2, [[3, 64, 96], [3, 48, 80]], num_items=items, num_classes=4)
        data = kd.data_preprocessor(data, True)
        loss, logged = kd.parse_losses(model(**data, mode="loss"))
        loss.backward()
        steps.append({n: None if p.grad is None else p.grad.clone() for n, p in _named(model)})
        losses.append({name: float(value) for name, value in logged.items()})
        optimizer.step()
        optimizer.zero_grad()
    return dict(
        steps=steps,
        losses=losses,
        points=points,
        names=[name for name, _ in model.named_parameters()],
        held=sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
        student=sum(p.numel() for p in kd.student.parameters()),
    )


def _named(model):
    return [(name.removeprefix("module.student."), p) for name, p in model.named_parameters()]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw, by the family's name; the second rank has no boxes."""
    from conftest import FAMILY_CONFIGS, random_checkpoint

    folder = tmp_path_factory.mktemp("ranks")
    assert FAMILY_CONFIGS.keys() == set(FAMILIES)
    cfgs, items = {}, [[3, 2], [0, 0]]
    for name in FAMILIES:
        cfg = FAMILY_CONFIGS[name]
        checkpoint = random_checkpoint(folder / f"{name}.pth", cfg)
        cfgs[name] = dict(
            type="KDDETR",
            student=cfg.to_dict(),
            teacher=dict(config=cfg.to_dict(), checkpoint=checkpoint),
            points=dict(num_general=0 if name == "detr" else 10),
        )
    workers = mp.spawn(work, (cfgs, str(folder), items), len(items), join=False)
    deadline = time.monotonic() + LIMIT_S
    try:
        while not workers.join(timeout=1):  # raises what a worker raised
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in workers.processes:
            process.kill()
    return {
        name: [torch.load(folder / f"{name}.{rank}.pth") for rank in range(len(items))]
        for name in FAMILIES
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_one_without_boxes(ranks, name):
    first, second = ranks[name]
    assert len(first["steps"]) == 3
    for ours, theirs in zip(first["steps"], second["steps"], strict=True):
        assert list(ours) == list(theirs)
        for parameter, gradient in ours.items():
            assert gradient is not None and gradient.isfinite().all(), parameter
            assert torch.equal(gradient, theirs[parameter]), parameter
    # Each rank has distilled its own images ...
    last = "kd_loss_specific_cls" if name == "detr" else "kd_loss_general_cls"
    assert all(losses[last] > 0 for losses in second["losses"])
    # ... at points of its own.
    draws = first["points"] + second["points"]
    assert len(draws) == (0 if name == "detr" else 6)
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    if draws:
        box = "kd_loss_general_l1"
        assert first["losses"][0][box] != second["losses"][0][box]
    # The teacher is neither reduced over ranks nor optimised.
    assert all(parameter.startswith("module.student.") for parameter in first["names"])
    assert first["held"] == first["student"]
