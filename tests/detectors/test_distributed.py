"""Two processes: distillation under DistributedDataParallel on CPUs.

The workers are fresh processes that import this file, so it imports nothing of the tests.
"""

import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT_S = 90  # of which nearly all is Python's and PyTorch's start


def work(rank, cfg, folder, items):
    """Three optimiser steps of one of two ranks; what it saw goes to a file."""
    torch.set_num_threads(1)
    import kd_detr_mmdet  # noqa: F401  isort: skip  (before mmdet's models)
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import build_optim_wrapper

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(items)
    )
    register_all_modules()
    torch.manual_seed(0)  # the same on every rank, as a user may set it
    kd = MODELS.build(cfg)
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
        data = demo_mm_inputs(2, [[3, 64, 96], [3, 48, 80]], num_items=items[rank], num_classes=4)
        data = kd.data_preprocessor(data, True)
        loss, logged = kd.parse_losses(model(**data, mode="loss"))
        loss.backward()
        steps.append({n: None if p.grad is None else p.grad.clone() for n, p in _named(model)})
        losses.append({name: float(value) for name, value in logged.items()})
        optimizer.step()
        optimizer.zero_grad()
    torch.save(
        dict(
            steps=steps,
            losses=losses,
            points=points,
            names=[name for name, _ in model.named_parameters()],
            held=sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
            student=sum(p.numel() for p in kd.student.parameters()),
        ),
        f"{folder}/{rank}.pth",
    )
    dist.destroy_process_group()


def _named(model):
    return [(name.removeprefix("module.student."), p) for name, p in model.named_parameters()]


@pytest.fixture
def run(kd_config, tmp_path):
    """Runs two ranks; returns what each saw."""

    def start(items):
        ranks = mp.spawn(
            work, (kd_config().to_dict(), str(tmp_path), items), len(items), join=False
        )
        deadline = time.monotonic() + LIMIT_S
        try:
            while not ranks.join(timeout=1):  # raises what a worker raised
                assert time.monotonic() < deadline, "the ranks wait for each other"
        finally:
            for process in ranks.processes:
                process.kill()
        return [torch.load(tmp_path / f"{rank}.pth") for rank in range(len(items))]

    return start


def test_two_ranks_one_without_boxes(run):
    first, second = run([[3, 2], [0, 0]])
    assert len(first["steps"]) == 3
    for ours, theirs in zip(first["steps"], second["steps"], strict=True):
        assert list(ours) == list(theirs)
        for name, gradient in ours.items():
            assert gradient is not None and gradient.isfinite().all(), name
            assert torch.equal(gradient, theirs[name]), name
    # Each rank has distilled its own images, at points of its own.
    assert all(losses["kd_loss_general_cls"] > 0 for losses in second["losses"])
    assert first["losses"][0]["kd_loss_general_l1"] != second["losses"][0]["kd_loss_general_l1"]
    draws = first["points"] + second["points"]
    assert len(draws) == 6
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    # The teacher is neither reduced over ranks nor optimised.
    assert all(name.startswith("module.student.") for name in first["names"])
    assert first["held"] == first["student"]
