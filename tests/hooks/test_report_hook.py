"""DistillReportHook: the summary at the start of a distillation, and the check of the classes."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    FAMILY_CONFIGS,
    TEACHER,
    build,
    detr_config,
    dino_config,
    random_checkpoint,
    two_stage_config,
)
from mmengine.registry import HOOKS
from torch import nn

from kd_detr_mmdet.hooks import DistillReportHook
from kd_detr_mmdet.hooks.report_hook import check_classes, one_test_image, summary
from kd_detr_mmdet.utils.complexity import gflops, params_m
from kd_detr_mmdet.utils.errors import ConfigError

SHAPES = ("disc", "square", "triangle", "ring")


def line(text, name):
    """One line of a summary, by its first word."""
    return next(row for row in text.splitlines() if row.split()[:1] == [name])


@pytest.fixture
def taught(kd_config, tmp_path):
    """A KDDETR whose teacher's checkpoint knows its classes."""
    path = random_checkpoint(tmp_path / "taught.pth", dino_config(**TEACHER), classes=SHAPES)
    return build(kd_config(teacher=dict(config=dino_config(**TEACHER), checkpoint=path)))


def test_summary_tells_student_and_teacher(kd_config, batch, teacher_checkpoint):
    kd = build(kd_config())
    data = batch(kd, training=False)
    text = summary(kd, data)
    for name in ("student", "teacher"):
        model = getattr(kd, name)
        cost = gflops(model, data["inputs"], data["data_samples"])
        assert cost > 0
        told = f"DINO, {params_m(model):.2f} M parameters, {cost:.2f} GFLOPs at 96x64"
        assert told in line(text, name)
    sha256 = hashlib.sha256(Path(teacher_checkpoint).read_bytes()).hexdigest()
    assert f"{teacher_checkpoint} (sha256 {sha256[:8]})" in text


def test_summary_without_images_has_no_gflops(kd_config):
    text = summary(build(kd_config()))
    assert "GFLOPs" not in text
    assert "M parameters" in text


def test_summary_tells_points_and_losses(kd_config):
    cfg = kd_config(
        points=dict(num_general=17, distribution="normal", proposals=True),
        distill_loss=dict(
            class_term="softmax",
            cls_weight=1.5,
            l1_weight=6,
            giou_weight=7,
            temperature=3,
            set_weights=dict(general=0.5),
        ),
    )
    text = summary(build(cfg))
    assert line(text, "points").endswith(
        "16 specific (the teacher's queries) + 17 general (normal) + the encoders' proposals "
        "per image"
    )
    loss = line(text, "loss")
    for told in (
        "cls 1.5, l1 6, giou 7",
        "general points x 0.5",
        "softmax, temperature 3",
        "foreground rebalance",
        "per weight",
        "teacher layer: last",
    ):
        assert told in loss


def test_summary_tells_how_a_background_is_taught(kd_config, pair):
    student = two_stage_config()
    text = summary(build(kd_config(student=student, distill_loss=dict(class_bridge="posterior"))))
    assert "(posterior bridge; foreground" in line(text, "loss")
    detrs = pair(detr_config(), detr_config())
    assert "(softmax with background, temperature 1; " in line(summary(detrs), "loss")


def test_summary_leaves_out_what_is_off(kd_config):
    cfg = kd_config(points=dict(num_general=0), distill_loss=dict(rebalance=False))
    text = summary(build(cfg))
    assert "general" not in text
    assert "no rebalance" in text
    cfg = kd_config(points=dict(num_general=5, specific=False))
    assert "specific" not in summary(build(cfg))


@pytest.mark.parametrize("strategy", ["inconsistent", "hungarian"])
def test_summary_tells_that_no_points_are_shared(kd_config, strategy):
    cfg = kd_config(points=dict(type="QueryPairing", strategy=strategy))
    told = line(summary(build(cfg)), "points")
    assert told.split(None, 1)[1] == f"none shared: own queries paired, {strategy}"


def test_summary_names_the_families(pair):
    kd = pair(FAMILY_CONFIGS["conditional"], FAMILY_CONFIGS["ddq"])
    text = summary(kd)
    assert line(text, "student").split()[1] == "ConditionalDETR,"
    assert line(text, "teacher").split()[1] == "DDQDETR,"
    # Its queries are not counted from an embedding, of which it has none.
    assert "12 specific (the teacher's queries) + 10 general" in line(text, "points")


def test_summary_warns_of_random_weights(kd_config):
    cfg = kd_config(teacher=dict(config=dino_config(**TEACHER), checkpoint=None))
    assert "no checkpoint: random weights" in summary(build(cfg))


def test_summary_asks_whether_student_and_teacher_are_swapped(kd_config, pair):
    question = "smaller than the student: are the two swapped?"
    assert question not in summary(build(kd_config()))
    assert question not in summary(pair(dino_config(), dino_config()))
    assert question in summary(pair(dino_config(**TEACHER), dino_config()))


def test_summary_leaves_the_model_as_it_was(kd_config, batch):
    kd = build(kd_config()).train()
    data = batch(kd, training=False)
    state = {name: value.clone() for name, value in kd.state_dict().items()}
    random_state = torch.get_rng_state()
    summary(kd, data)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert kd.student.training
    assert not kd.teacher.training
    for name, value in kd.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_other_classes_are_refused(taught):
    with pytest.raises(ConfigError) as error:
        check_classes(taught, ("disc", "square", "triangle", "cross"))
    message = str(error.value)
    assert "(disc, square, triangle, ring; 4 in all)" in message
    assert "(disc, square, triangle, cross; 4 in all)" in message
    assert "metainfo" in message


def test_the_same_classes_in_another_order_are_refused(taught):
    with pytest.raises(ConfigError, match="same order"):
        check_classes(taught, SHAPES[::-1])


def test_the_same_classes_pass(taught):
    check_classes(taught, SHAPES)
    check_classes(taught, list(SHAPES))


def test_unknown_classes_pass(taught, kd_config):
    check_classes(taught, None)  # the data set does not say
    check_classes(build(kd_config()), ("a", "b", "c", "d"))  # the checkpoint does not say


def test_long_lists_of_classes_are_cut(taught):
    with pytest.raises(ConfigError, match=r"\(c0, c1, c2, c3, c4, c5, \.\.\.; 80 in all\)"):
        check_classes(taught, tuple(f"c{i}" for i in range(80)))


class OneImage(list):
    metainfo = dict(classes=SHAPES)


def run_hook(model, batch, classes=SHAPES, rank=0, images=None, val=True):
    """Start a training run as far as the hook sees it; returns what it logged."""
    data = images if images is not None else OneImage([3])
    if classes is not None:
        data.metainfo = dict(classes=classes)
    collated = dict(inputs=[torch.zeros(3, 64, 96)] * 2, data_samples=batch["data_samples"])
    loader = SimpleNamespace(dataset=data, collate_fn=lambda items: collated)
    logged = []
    runner = SimpleNamespace(
        model=model,
        rank=rank,
        train_dataloader=loader,
        val_loop=SimpleNamespace(dataloader=loader) if val else None,
        logger=SimpleNamespace(info=logged.append),
    )
    hook = HOOKS.build(dict(type="DistillReportHook"))
    assert isinstance(hook, DistillReportHook)
    hook.before_train(runner)
    return logged


def test_hook_prints_one_summary(taught, batch):
    data = batch(taught)
    logged = run_hook(taught, data)
    assert len(logged) == 1
    assert re.search(r"KD-DETR\n  student  DINO.* GFLOPs at 96x64", logged[0])


def test_hook_sees_through_a_wrapper(taught, batch):
    """Under DistributedDataParallel the model is wrapped."""

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    assert len(run_hook(Wrapper(taught), batch(taught))) == 1


def test_hook_needs_no_validation(taught, batch):
    (text,) = run_hook(taught, batch(taught), val=False)
    assert "GFLOPs" not in text
    (text,) = run_hook(taught, batch(taught), images=OneImage())
    assert "GFLOPs" not in text


def test_hook_prints_on_one_rank_but_checks_on_all(taught, batch):
    assert run_hook(taught, batch(taught), rank=1) == []
    with pytest.raises(ConfigError):
        run_hook(taught, batch(taught), rank=1, classes=("a", "b", "c", "d"))


def test_joined_data_sets_tell_their_classes_one_by_one(taught, batch):
    """mmdet's ConcatDataset holds a list where anything differs, such as a palette."""
    joined = OneImage([3])
    joined.metainfo = [dict(classes=SHAPES, palette=1), dict(classes=list(SHAPES), palette=2)]
    assert len(run_hook(taught, batch(taught), images=joined, classes=None)) == 1
    for other in (("disc", "square", "triangle", "cross"), SHAPES[::-1]):
        joined.metainfo = [dict(classes=SHAPES), dict(classes=other)]
        with pytest.raises(ConfigError, match=rf"different classes, \(disc.* and \({other[0]}"):
            run_hook(taught, batch(taught), images=joined, classes=None)


def test_first_test_image_is_preprocessed(taught, batch):
    image = torch.full((3, 64, 96), 255, dtype=torch.uint8)
    sample = batch(taught)["data_samples"][0]
    loader = SimpleNamespace(
        dataset=[(image, sample)],
        collate_fn=lambda items: dict(
            inputs=[i for i, _ in items], data_samples=[s for _, s in items]
        ),
    )
    data = one_test_image(taught, loader)
    assert data["inputs"].shape == (1, 3, 64, 96)
    expected = (255 - taught.data_preprocessor.mean) / taught.data_preprocessor.std
    torch.testing.assert_close(data["inputs"][0, :, 0, 0], expected.flatten())
