"""KDDETR in MMEngine's Runner, on generated images: checkpoints, resuming, evaluation."""

import copy

import pytest
import torch
from conftest import FAMILY_CONFIGS, build, dino_config, random_checkpoint
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, load_checkpoint
from mmengine.visualization import Visualizer

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes
from kd_detr_mmdet.hooks.random_state_hook import get_random_state, set_random_state
from kd_detr_mmdet.utils.errors import ConfigError

SIZE = (64, 48)


@pytest.fixture(scope="module", autouse=True)
def globals_of_other_tests():
    """A Runner leaves a message hub, a logger, a scope and a seed behind."""
    managers = (MessageHub, MMLogger, DefaultScope, Visualizer)
    before = [copy.copy(manager._instance_dict) for manager in managers]
    random_state = get_random_state()
    yield
    set_random_state(random_state)
    for manager, instances in zip(managers, before):
        manager._instance_dict.clear()
        manager._instance_dict.update(instances)


@pytest.fixture(scope="module", autouse=True)
def plain_config_text():
    """A Runner logs its config formatted by yapf, which takes longer than training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "pretty_text", property(lambda cfg: f"cfg = {cfg.to_dict()!r}"))
        yield


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    return str(generate_shapes(root, splits=dict(train=12, val=2), image_size=SIZE))


@pytest.fixture(scope="module")
def student():
    return dino_config(num_queries=8, dropout=0.1)


@pytest.fixture(scope="module")
def kd_model(student, tmp_path_factory):
    teacher = dino_config(decoder_layers=3, num_queries=8)
    checkpoint = random_checkpoint(
        tmp_path_factory.mktemp("teacher") / "teacher.pth", teacher, classes=SHAPE_CLASSES
    )
    return dict(
        type="KDDETR",
        student=student,
        teacher=dict(config=teacher, checkpoint=checkpoint),
        points=dict(num_general=6),
    )


def dataloader(root, split, **more):
    flip = [dict(type="RandomFlip", prob=0.5, direction=["horizontal", "vertical"])]
    return dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=split == "train"),
        dataset=dict(
            type="CocoDataset",
            data_root=root,
            ann_file=f"annotations/instances_{split}.json",
            data_prefix=dict(img=f"images/{split}/"),
            metainfo=dict(classes=SHAPE_CLASSES),
            test_mode=split == "val",
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="LoadAnnotations", with_bbox=True),
                dict(type="Resize", scale=SIZE, keep_ratio=True),
                *(flip if split == "train" else []),
                dict(
                    type="PackDetInputs",
                    meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
                ),
            ],
            **more,
        ),
    )


def train(model, root, work_dir, epochs, **more):
    """Train from a config as tools/train.py would; returns the last checkpoint's content."""
    cfg = dict(
        model=model,
        default_scope="mmdet",
        work_dir=str(work_dir),
        experiment_name=f"{work_dir.parent.name}_{work_dir.name}",
        train_dataloader=dataloader(root, "train"),
        val_dataloader=dataloader(root, "val"),
        val_evaluator=dict(
            type="CocoMetric", ann_file=f"{root}/annotations/instances_val.json", metric="bbox"
        ),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1),
        val_cfg=dict(type="ValLoop"),
        optim_wrapper=dict(
            optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=0.1, norm_type=2)
        ),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
        custom_hooks=[
            dict(type="RandomStateHook"),
            dict(type="EMAHook", momentum=0.1),
            dict(type="DistillReportHook"),
        ],
        randomness=dict(seed=3),
        log_level="WARNING",
    )
    runner = Runner.from_cfg(Config(copy.deepcopy({**cfg, **more})))
    runner.train()
    return runner, torch.load(work_dir / f"epoch_{epochs}.pth", weights_only=False)


@pytest.fixture(scope="module")
def whole(kd_model, data_root, tmp_path_factory):
    """A run of two epochs: its folder, its Runner and its last checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, *train(kd_model, data_root, folder, 2)


def differences(ours, theirs, where=""):
    """Paths at which two nested values are not bit-equal."""
    if torch.is_tensor(ours):
        return [] if torch.equal(ours, theirs) else [where]
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        return [d for k in ours for d in differences(ours[k], theirs[k], f"{where}.{k}")]
    if isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        return [d for i, (a, b) in enumerate(zip(ours, theirs)) for d in differences(a, b, f"{i}")]
    return [] if ours == theirs else [where]


def test_checkpoint_is_the_plain_students(whole, student, batch):
    _, runner, saved = whole
    plain = build(student)
    assert list(saved["state_dict"]) == list(plain.state_dict())
    assert set(saved["ema_state_dict"]) == {
        "steps",
        *(f"module.{name}" for name in saved["state_dict"]),
    }
    assert saved["meta"]["dataset_meta"]["classes"] == SHAPE_CLASSES
    load_checkpoint(plain, str(whole[0] / "epoch_2.pth"), strict=True)
    # EMAHook saves the averaged weights as the model's, and puts the others under its own key.
    runner.model.load_state_dict(saved["state_dict"], strict=True)
    data = batch(plain, training=False)
    ours, theirs = (
        model.eval()(**copy.deepcopy(data), mode="predict") for model in (runner.model, plain)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine.pred_instances) == 8
        for field in ("bboxes", "scores", "labels"):
            assert torch.equal(mine.pred_instances[field], other.pred_instances[field])


def test_optimizer_state_is_the_students(whole, student):
    number = len(list(build(student).parameters()))
    assert len(whole[2]["optimizer"]["state"]) == number


def test_training_moved_the_student_and_not_the_teacher(whole, student, kd_model):
    _, runner, saved = whole
    plain = build(student).state_dict()
    moved = [name for name, value in plain.items() if value.is_floating_point()]
    moved = [name for name in moved if not torch.equal(saved["state_dict"][name], plain[name])]
    assert len(moved) > 100
    taught = torch.load(kd_model["teacher"]["checkpoint"], weights_only=True)["state_dict"]
    assert not differences(taught, dict(runner.model.teacher.state_dict()))


def test_resumed_run_equals_the_uninterrupted_one(whole, kd_model, data_root):
    """Weights, averaged weights and optimiser, after flips, dropout, noise and general points."""
    folder, _, expected = whole
    _, resumed = train(
        kd_model,
        data_root,
        folder.parent / "resumed",
        2,
        resume=True,
        load_from=str(folder / "epoch_1.pth"),
    )
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert not differences(expected[part], resumed[part])[:5], part
    assert expected["meta"]["iter"] == resumed["meta"]["iter"] == 6
    # Had the second epoch done nothing, or not drawn anything, all this would be no wonder.
    first = torch.load(folder / "epoch_1.pth", weights_only=False)
    assert differences(first["state_dict"], resumed["state_dict"])
    assert differences(first["random_state"], resumed["random_state"])


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_one_epoch_of_every_family(name, data_root, tmp_path, batch):
    cfg = FAMILY_CONFIGS[name]
    checkpoint = random_checkpoint(tmp_path / "teacher.pth", cfg, classes=SHAPE_CLASSES)
    model = dict(
        type="KDDETR",
        student=cfg,
        teacher=dict(config=cfg, checkpoint=checkpoint),
        points=dict(num_general=0 if name == "detr" else 6),
    )
    runner, saved = train(model, data_root, tmp_path / name, 1)
    assert saved["meta"]["iter"] == 3
    plain = build(cfg)
    initial = plain.state_dict()
    if name == "ddq":
        # In training mmdet's DDQ-DETR names one list of layers twice, and saves it so.
        plain.decoder.aux_reg_branches = plain.bbox_head.aux_reg_branches
    assert list(saved["state_dict"]) == list(plain.state_dict())
    plain.load_state_dict(saved["state_dict"], strict=True)
    moved = [
        n for n in initial if not torch.equal(saved["ema_state_dict"]["module." + n], initial[n])
    ]
    assert {n.split(".")[0] for n in moved} >= {
        "backbone",
        "neck",
        "encoder",
        "decoder",
        "bbox_head",
    }
    runner.model.load_state_dict(saved["state_dict"], strict=True)
    data = batch(plain, training=False)
    ours, theirs = (m.eval()(**copy.deepcopy(data), mode="predict") for m in (runner.model, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine.pred_instances) > 0
        for field in ("bboxes", "scores", "labels"):
            assert torch.equal(mine.pred_instances[field], other.pred_instances[field])


def test_other_classes_stop_the_run(kd_model, data_root, tmp_path):
    renamed = tuple(reversed(SHAPE_CLASSES))
    loader = dataloader(data_root, "train")
    loader["dataset"]["metainfo"] = dict(classes=renamed)
    with pytest.raises(ConfigError, match="trained on classes"):
        train(kd_model, data_root, tmp_path / "renamed", 1, train_dataloader=loader)
    assert not list((tmp_path / "renamed").glob("*.pth"))
