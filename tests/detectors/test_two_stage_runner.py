"""Two-stage students in MMEngine's Runner, and over two processes: with the helpers of others."""

import copy
import time

import pytest
import test_distributed
import test_runner
import torch
import torch.multiprocessing as mp
from conftest import TEACHER, build, dino_config, random_checkpoint, two_stage_config
from mmengine.runner import load_checkpoint

from kd_detr_mmdet.datasets import SHAPE_CLASSES

globals_of_other_tests = test_runner.globals_of_other_tests
plain_config_text = test_runner.plain_config_text
data_root = test_runner.data_root

POINTS = dict(type="CoordinateSampler", max_points=12, num_general=5, specific=True)
SETS, TERMS = ("roi", "specific", "general"), ("cls", "l1", "giou")


def kd_config(kind, folder):
    """A distillation of a DINO into a tiny two-stage detector, as a plain dict."""
    teacher = dino_config(**TEACHER)
    checkpoint = random_checkpoint(folder / "teacher.pth", teacher, classes=SHAPE_CLASSES)
    return dict(
        type="KDDETR",
        student=two_stage_config(kind).to_dict(),
        teacher=dict(config=teacher.to_dict(), checkpoint=checkpoint),
        points=POINTS,
    )


# --- one process ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn"])
def test_one_epoch_and_the_stock_config(kind, data_root, tmp_path, batch):
    cfg = kd_config(kind, tmp_path)
    runner, saved = test_runner.train(cfg, data_root, tmp_path / kind, 1)
    assert saved["meta"]["iter"] == 3
    logged = runner.message_hub.log_scalars
    depths = ("d0.", "d1.", "") if kind == "cascade_rcnn" else ("",)
    for name in (f"{d}kd_loss_{s}_{t}" for d in depths for s in SETS for t in TERMS):
        assert logged[f"train/{name}"].current() > 0, name
    assert "val/coco/bbox_mAP" in logged

    plain = build(two_stage_config(kind))
    initial = copy.deepcopy(plain.state_dict())
    assert list(saved["state_dict"]) == list(initial)
    moved = {
        name.split(".")[0]
        for name, value in initial.items()
        if not torch.equal(saved["ema_state_dict"]["module." + name], value)
    }
    assert moved == {"backbone", "neck", "rpn_head", "roi_head"}
    load_checkpoint(plain, str(tmp_path / kind / "epoch_1.pth"), strict=True)
    runner.model.load_state_dict(saved["state_dict"], strict=True)
    data = batch(plain, training=False)
    ours, theirs = (m.eval()(**copy.deepcopy(data), mode="predict") for m in (runner.model, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine.pred_instances) > 0
        for field in ("bboxes", "scores", "labels"):
            assert torch.equal(mine.pred_instances[field], other.pred_instances[field])
    taught = torch.load(cfg["teacher"]["checkpoint"], weights_only=True)["state_dict"]
    for name, value in runner.model.teacher.state_dict().items():
        assert torch.equal(taught[name], value), name


def test_a_resumed_run_equals_the_uninterrupted_one(data_root, tmp_path):
    """The RoIs that the loss samples, the points that are drawn of them, and those filled up."""
    cfg = kd_config("faster_rcnn", tmp_path)
    cfg["points"] = dict(POINTS, max_points=20)
    _, whole = test_runner.train(cfg, data_root, tmp_path / "whole", 2)
    first = str(tmp_path / "whole" / "epoch_1.pth")
    _, resumed = test_runner.train(
        cfg, data_root, tmp_path / "resumed", 2, resume=True, load_from=first
    )
    for part in ("state_dict", "optimizer"):
        assert not test_runner.differences(whole[part], resumed[part])[:5], part
    before = torch.load(first, weights_only=False)["state_dict"]
    assert test_runner.differences(before, whole["state_dict"])


# --- two processes, one of them without boxes -----------------------------------------------------

KINDS = "faster_rcnn", "cascade_rcnn"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw, by the student's kind; the second rank has no boxes."""
    folder = tmp_path_factory.mktemp("ranks")
    cfgs, items = {kind: kd_config(kind, folder) for kind in KINDS}, [[3, 2], [0, 0]]
    # The workers import test_distributed alone.
    workers = mp.spawn(test_distributed.work, (cfgs, str(folder), items), len(items), join=False)
    deadline = time.monotonic() + test_distributed.LIMIT_S
    try:
        while not workers.join(timeout=1):  # raises what a worker raised
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in workers.processes:
            process.kill()
    return {
        kind: [torch.load(folder / f"{kind}.{rank}.pth") for rank in range(len(items))]
        for kind in KINDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_one_without_boxes(ranks, kind):
    first, second = ranks[kind]
    assert len(first["steps"]) == len(second["steps"]) == 3
    for ours, theirs in zip(first["steps"], second["steps"], strict=True):
        assert list(ours) == list(theirs)
        for parameter, gradient in ours.items():
            assert gradient is not None and gradient.isfinite().all(), parameter
            assert torch.equal(gradient, theirs[parameter]), parameter
    # Each rank has distilled its own images, at points of its own.
    for name in (f"kd_loss_{points}_{term}" for points in SETS for term in TERMS):
        for ours, theirs in zip(first["losses"], second["losses"], strict=True):
            assert ours[name] > 0 and theirs[name] > 0, name
    box = "kd_loss_general_l1"
    assert first["losses"][0][box] != second["losses"][0][box]
    assert all(name.startswith("module.student.") for name in first["names"])
    assert first["held"] == first["student"]
