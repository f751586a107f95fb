"""A loss or gradient that is not finite: every rank skips the step or stops, weights untouched.

The workers are fresh processes that import this file, so it imports nothing of the tests.
"""

import copy
import json
import math
import re
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT_S = 240  # of which nearly all is Python's and PyTorch's start


def poison_images(model, iterations):
    """In these iterations the first image of a batch is NaN, whatever the data says."""
    from mmengine.logging import MessageHub

    def spoil(module, args, batch):
        if module.training and MessageHub.get_current_instance().get_info("iter") in iterations:
            batch["inputs"][0] = math.nan
        return batch

    return model.data_preprocessor.register_forward_hook(spoil)


def poison_gradient(parameter, iterations):
    """In these iterations a gradient is infinite, though the losses are not."""
    from mmengine.logging import MessageHub

    def spoil(gradient):
        bad = MessageHub.get_current_instance().get_info("iter") in iterations
        return gradient * math.inf if bad else gradient

    return parameter.register_hook(spoil)


def state_of(*parts):
    return [copy.deepcopy(part.state_dict()) for part in parts]


def same(state, other):
    if torch.is_tensor(state):
        return torch.equal(state, other)
    if isinstance(state, dict):
        return state.keys() == other.keys() and all(same(v, other[k]) for k, v in state.items())
    if isinstance(state, (list, tuple)):
        return len(state) == len(other) and all(map(same, state, other))
    return state == other


# One process, in MMEngine's Runner


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    from kd_detr_mmdet.datasets import generate_shapes

    return generate_shapes(tmp_path_factory.mktemp("data") / "shapes", dict(train=9), (64, 48))


@pytest.fixture
def runner(shapes, teacher_checkpoint, tmp_path, monkeypatch):
    """Makes a Runner of a tiny distillation, three iterations an epoch."""
    from conftest import TEACHER, dino_config
    from mmengine.config import Config
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner
    from mmengine.visualization import Visualizer

    from kd_detr_mmdet.datasets import SHAPE_CLASSES

    for manager in (MessageHub, MMLogger, DefaultScope, Visualizer):
        monkeypatch.setattr(manager, "_instance_dict", copy.copy(manager._instance_dict))
    monkeypatch.setattr("mmengine.runner.runner.collect_env", lambda: {"Python": "3"})
    # Formatting the config by yapf takes longer than training here.
    monkeypatch.setattr(Config, "pretty_text", property(lambda cfg: "cfg"))
    names = iter("abcdefgh")

    def make(epochs, clip_grad=True, hook=None, model=None, **more):
        meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        cfg = dict(
            model=model
            or dict(
                type="KDDETR",
                student=dino_config(),
                teacher=dict(config=dino_config(**TEACHER), checkpoint=teacher_checkpoint),
                points=dict(num_general=5),
            ),
            default_scope="mmdet",
            work_dir=str(tmp_path),
            experiment_name=f"{tmp_path.name}_{next(names)}",
            train_dataloader=dict(
                batch_size=3,
                num_workers=0,
                sampler=dict(type="DefaultSampler", shuffle=False),
                dataset=dict(
                    type="CocoDataset",
                    data_root=str(shapes),
                    ann_file="annotations/instances_train.json",
                    data_prefix=dict(img="images/train/"),
                    metainfo=dict(classes=SHAPE_CLASSES),
                    pipeline=[
                        dict(type="LoadImageFromFile"),
                        dict(type="LoadAnnotations", with_bbox=True),
                        dict(type="PackDetInputs", meta_keys=meta),
                    ],
                ),
            ),
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=epochs),
            optim_wrapper=dict(
                optimizer=dict(type="AdamW", lr=1e-3),
                clip_grad=dict(max_norm=0.1) if clip_grad else None,
            ),
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(type="CheckpointHook", interval=1),
                non_finite=dict(type="NonFiniteHook", **(hook or {})),
            ),
            custom_hooks=[dict(type="EMAHook", momentum=0.1)],
            randomness=dict(seed=0),
            log_level="WARNING",
            **more,
        )
        return Runner.from_cfg(Config(copy.deepcopy(cfg)))

    return make


@pytest.fixture
def watch():
    """Keeps model and optimiser as they were before each iteration."""
    from mmengine.hooks import Hook

    class Watch(Hook):
        def __init__(self):
            self.states = {}

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.states[runner.iter] = state_of(runner.model, runner.optim_wrapper.optimizer)

        def after_train(self, runner):
            self.states[runner.iter] = state_of(runner.model, runner.optim_wrapper.optimizer)

    return Watch()


def finite(state):
    return all(v.isfinite().all() for v in state.values() if v.is_floating_point())


def test_a_step_is_skipped_as_if_it_had_not_been(runner, watch, tmp_path, capfd):
    from kd_detr_mmdet.hooks import DistillLogHook
    from kd_detr_mmdet.utils.errors import NonFiniteLossError

    run = runner(1, hook=dict(skip=1))
    run.register_hook(watch)
    run.register_hook(DistillLogHook())  # which finds no losses in that step's line
    poison_images(run.model, [1])
    run.train()
    # Weights, batch norm's statistics and Adam's are those of before; the steps around moved them.
    assert not same(watch.states[0], watch.states[1])
    assert same(watch.states[1], watch.states[2])
    assert not same(watch.states[2], watch.states[3])
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=False)
    assert finite(saved["state_dict"]) and finite(saved["ema_state_dict"])
    # The user is told what, where, and how often so far.
    told = capfd.readouterr()
    told = told.out + told.err
    line = next(line for line in told.splitlines() if "step skipped (1 of at most 1)" in line)
    assert re.search(r"at iteration 1: .*loss_cls = nan.* with image ids 4, 5, 6 \(.*4\.png", line)
    rows = next(tmp_path.glob("*/vis_data/scalars.json")).read_text().splitlines()
    assert [json.loads(row).get("skipped_steps") for row in rows] == [None, 1, 1]
    # The batch, as data.
    batch = torch.load(tmp_path / "non_finite/iter_1_rank0.pth", weights_only=True)
    assert batch["iteration"] == 1 and "loss_cls = nan" in batch["what"]
    assert batch["inputs"].shape == (3, 3, 48, 64)
    assert batch["inputs"][0].isnan().all() and batch["inputs"][1:].isfinite().all()
    sample = batch["samples"][1]
    assert sample["metainfo"]["img_path"].endswith("5.png")
    boxes = sample["gt_instances"]["bboxes"]
    assert boxes.shape == (len(sample["gt_instances"]["labels"]), 4) and len(boxes)

    # A resumed run has not forgotten that it has skipped a step.
    checkpoint = str(tmp_path / "epoch_1.pth")
    again = runner(2, hook=dict(skip=1), load_from=checkpoint, resume=True)
    poison_images(again.model, [4])
    with pytest.raises(NonFiniteLossError, match=r"iteration 4: .*\(1 steps had been skipped"):
        again.train()
    assert not (tmp_path / "epoch_2.pth").exists()


@pytest.mark.parametrize("skip", [0, 1])
def test_a_detector_without_a_teacher_is_watched_alike(runner, watch, skip):
    """A teacher, or a student alone; its Hungarian matching would refuse such predictions."""
    from conftest import dino_config

    from kd_detr_mmdet.utils.errors import NonFiniteLossError

    run = runner(1, hook=dict(skip=skip), model=dino_config())
    run.register_hook(watch)
    poison_images(run.model, [1])
    if skip:
        run.train()
        assert same(watch.states[1], watch.states[2])
        assert not same(watch.states[2], watch.states[3])
        assert "loss" not in vars(run.model) and "train_step" not in vars(run.model)
    else:
        with pytest.raises(NonFiniteLossError, match="at iteration 1: .*loss_cls = nan.* ids 4, 5"):
            run.train()
        assert finite(dict(run.model.named_parameters()))


@pytest.mark.parametrize("clip_grad", [True, False])
def test_a_gradient_that_is_not_finite_is_found_before_the_weights_change(
    runner, watch, clip_grad, tmp_path
):
    run = runner(1, clip_grad, dict(skip=1))
    run.register_hook(watch)
    poison_gradient(run.model.student.bbox_head.reg_branches[0][0].weight, [1])
    run.train()
    # The forward pass was fine; what counts is that all is as before, batch norm included.
    assert not same(watch.states[0], watch.states[1])
    assert same(watch.states[1], watch.states[2])
    assert not same(watch.states[2], watch.states[3])
    batch = torch.load(tmp_path / "non_finite/iter_1_rank0.pth", weights_only=True)
    assert re.search(
        r"every loss is finite, but the norm of the gradient is (inf|nan)", batch["what"]
    )


def test_without_skipping_the_run_stops_and_a_full_disk_hides_nothing(runner, watch, monkeypatch):
    from kd_detr_mmdet.utils.errors import NonFiniteLossError

    def full(*args):
        raise OSError("No space left on device")

    run = runner(1)
    run.register_hook(watch)
    poison_images(run.model, [1])
    monkeypatch.setattr("kd_detr_mmdet.hooks.non_finite_hook.torch.save", full)
    with pytest.raises(NonFiniteLossError, match="at iteration 1: .*loss_cls = nan"):
        run.train()
    weights = run.model.state_dict()
    parameters = [name for name, _ in run.model.student.named_parameters()]
    assert all(torch.equal(weights[name], watch.states[1][0][name]) for name in parameters)


@pytest.mark.parametrize("skip", [-1, 1.5, True])
def test_how_many_steps_must_be_a_number(skip):
    from kd_detr_mmdet.hooks import NonFiniteHook
    from kd_detr_mmdet.utils.errors import ConfigError

    with pytest.raises(ConfigError, match="skip must be 0 or more"):
        NonFiniteHook(skip=skip)


# Two processes

# Which rank is ill in which iteration. In the last one both may skip no more.
BAD_IMAGES = {0: [3], 1: [1, 5]}
BAD_GRADIENTS = {0: [2], 1: []}


def work(rank, cfg, folder):
    torch.set_num_threads(1)
    import kd_detr_mmdet  # noqa: F401  isort: skip  (before mmdet's models)
    from mmdet.utils import register_all_modules

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    register_all_modules()
    torch.save(train(cfg, rank, folder), f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


def train(cfg, rank, folder):
    """Steps of one rank until it stops: its weights after each, and the error's text."""
    from types import SimpleNamespace

    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import build_optim_wrapper

    from kd_detr_mmdet.hooks import NonFiniteHook
    from kd_detr_mmdet.utils.errors import NonFiniteLossError

    torch.manual_seed(0)
    hub = MessageHub.get_instance("ranks")
    kd = MODELS.build(cfg)
    kd.init_weights()
    model = MMDistributedDataParallel(kd, find_unused_parameters=False, broadcast_buffers=False)
    optimizer = build_optim_wrapper(model, dict(optimizer=dict(type="AdamW", lr=1e-3)))
    poison_images(kd, BAD_IMAGES[rank])
    poison_gradient(kd.student.bbox_head.reg_branches[0][0].weight, BAD_GRADIENTS[rank])
    hook = NonFiniteHook(skip=3)
    runner = SimpleNamespace(
        model=model, optim_wrapper=optimizer, message_hub=hub, work_dir=folder, iter=0,
        logger=MMLogger.get_instance("ranks", log_level="WARNING"),
    )  # fmt: skip
    hook.before_train(runner)
    model.train()
    states, error = [state_of(kd)], ""
    try:
        for runner.iter in range(6):
            hub.update_info("iter", runner.iter)
            data = demo_mm_inputs(2, [[3, 64, 96], [3, 48, 80]], num_items=[3, 2], num_classes=4)
            for number, sample in enumerate(data["data_samples"]):
                sample.set_metainfo(dict(img_id=100 * rank + number))
            model.train_step(data, optimizer)
            states.append(state_of(kd))
    except NonFiniteLossError as raised:
        error = str(raised)
    return dict(
        states=states, error=error, parameters=[n for n, _ in kd.student.named_parameters()]
    )


def test_two_ranks_skip_the_same_steps_and_stop_together(tmp_path):
    from conftest import dino_config, random_checkpoint

    student = dino_config().to_dict()
    checkpoint = random_checkpoint(tmp_path / "teacher.pth", dino_config())
    cfg = dict(
        type="KDDETR",
        student=student,
        teacher=dict(config=student, checkpoint=checkpoint),
        points=dict(num_general=5),
    )
    workers = mp.spawn(work, (cfg, str(tmp_path)), 2, join=False)
    deadline = time.monotonic() + LIMIT_S
    try:
        while not workers.join(timeout=1):  # raises what a worker raised
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in workers.processes:
            process.kill()
    ranks = [torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2)]
    for rank in ranks:
        assert len(rank["states"]) == 6  # the first, and after five of six iterations
        moved = [not same(*pair) for pair in zip(rank["states"], rank["states"][1:])]
        assert moved == [True, False, False, False, True]
        assert "at iteration 5: " in rank["error"] and "(3 steps had been skipped" in rank["error"]
        assert "loss_cls = nan" in rank["error"]  # said by both
        assert "with image ids 100, 101 of rank 1" in rank["error"]
    for ours, theirs in zip(ranks[0]["states"], ranks[1]["states"]):
        assert all(torch.equal(ours[0][n], theirs[0][n]) for n in ranks[0]["parameters"])
    saved = {path.name for path in (tmp_path / "non_finite").iterdir()}
    assert saved == {f"iter_{i}_rank{rank}.pth" for i in (1, 2, 3, 5) for rank in (0, 1)}
