"""The teacher: every weight from the checkpoint, every mistake told, nothing downloaded."""

import copy
import hashlib
import logging
import os
from pathlib import Path

import pytest
import torch
from conftest import DINO_WIDTH, TEACHER, build, ddq_config, dino_config, random_checkpoint
from mmdet.models.detectors import DINO
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule

from kd_detr_mmdet.detectors import build_teacher
from kd_detr_mmdet.utils.errors import ConfigError


@pytest.fixture
def config():
    return dino_config(**TEACHER)


@pytest.fixture
def saved(teacher_checkpoint):
    """Content of the teacher's checkpoint."""
    return torch.load(teacher_checkpoint, weights_only=True)


@pytest.fixture
def store(tmp_path):
    """Saves a checkpoint's content; returns its path."""

    def save(content):
        torch.save(content, tmp_path / "changed.pth")
        return str(tmp_path / "changed.pth")

    return save


@pytest.fixture
def logged():
    """What MMEngine's logger says: list of (level, message)."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelno, record.getMessage()))
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def refused(*args, **kwargs):
    """What the user is told: one line."""
    with pytest.raises(ConfigError) as error:
        build_teacher(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_loaded(teacher, state):
    assert set(teacher.state_dict()) == set(state)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, state[name]), name


# What is built


def test_every_weight_comes_from_the_checkpoint(config, teacher_checkpoint, saved):
    teacher = build_teacher(config, teacher_checkpoint)
    assert_loaded(teacher, saved["state_dict"])
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_path_may_be_a_path(config, teacher_checkpoint, saved):
    assert_loaded(build_teacher(config, Path(teacher_checkpoint)), saved["state_dict"])


def test_checkpoint_of_weights_alone(config, saved, store):
    teacher = build_teacher(config, store(saved["state_dict"]))
    assert_loaded(teacher, saved["state_dict"])
    assert teacher.checkpoint_info["classes"] is None


def test_checkpoint_of_a_wrapped_model(config, saved, store):
    """DistributedDataParallel prefixes every key."""
    wrapped = {f"module.{key}": value for key, value in saved["state_dict"].items()}
    assert_loaded(build_teacher(config, store(dict(state_dict=wrapped))), saved["state_dict"])


def test_checkpoint_of_before_batches_were_counted(config, saved, store):
    state = {k: v for k, v in saved["state_dict"].items() if "num_batches_tracked" not in k}
    assert len(state) < len(saved["state_dict"])
    assert_loaded(build_teacher(config, store(dict(state_dict=state))), saved["state_dict"])


def test_sha256_is_the_files(config, teacher_checkpoint):
    info = build_teacher(config, teacher_checkpoint).checkpoint_info
    assert info["source"] == teacher_checkpoint
    assert info["sha256"] == hashlib.sha256(Path(teacher_checkpoint).read_bytes()).hexdigest()


def test_sha256_of_a_file_in_the_home_directory(config, teacher_checkpoint, monkeypatch):
    folder, name = os.path.split(teacher_checkpoint)
    monkeypatch.setenv("HOME", folder)
    info = build_teacher(config, f"~/{name}").checkpoint_info
    assert info["sha256"] == hashlib.sha256(Path(teacher_checkpoint).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "meta, classes",
    [
        (dict(dataset_meta=dict(classes=["a", "b", "c", "d"])), ("a", "b", "c", "d")),
        # Of mmdet's ConcatDataset.
        (dict(dataset_meta=[dict(classes=["a", "b"]), dict(classes=("a", "b"))]), ("a", "b")),
        (dict(dataset_meta=[dict(classes=["a", "b"]), dict(classes=["b", "a"])]), None),
        (dict(dataset_meta=dict(CLASSES=("a", "b", "c", "d"))), ("a", "b", "c", "d")),
        (dict(CLASSES=("a", "b", "c", "d")), ("a", "b", "c", "d")),  # MMDetection 2
        (dict(epoch=1), None),
        ({}, None),
        (None, None),
    ],
)
def test_classes_come_from_the_checkpoint(config, saved, store, meta, classes):
    teacher = build_teacher(config, store(dict(state_dict=saved["state_dict"], meta=meta)))
    assert teacher.checkpoint_info["classes"] == classes


def test_nothing_is_initialised_and_nothing_downloaded(config, teacher_checkpoint, monkeypatch):
    """A backbone's init_cfg would fetch ImageNet weights, only to be overwritten."""

    def trap(self):
        raise AssertionError(f"{type(self).__name__}.init_weights")

    # mmcv's attention calls its own while it is built; that draws numbers and fetches nothing.
    for module in (BaseModule, DINO):
        monkeypatch.setattr(module, "init_weights", trap)
    config.backbone.init_cfg = dict(type="Pretrained", checkpoint="torchvision://resnet18")
    teacher = build_teacher(config, teacher_checkpoint)
    with pytest.raises(AssertionError, match="init_weights"):
        teacher.init_weights()  # the trap does work


def test_no_checkpoint_is_allowed_with_a_warning(config, logged):
    info = build_teacher(config, None).checkpoint_info
    assert info == dict(source=None, sha256=None, classes=None)
    warnings = [message for level, message in logged if level == logging.WARNING]
    assert len(warnings) == 1
    assert "teacher.checkpoint is None" in warnings[0]


def test_a_checkpoint_is_loaded_without_a_warning(config, teacher_checkpoint, logged):
    build_teacher(config, teacher_checkpoint)
    assert not [message for level, message in logged if level >= logging.WARNING]


# Files that cannot be read


def test_missing_file(config, tmp_path):
    message = refused(config, str(tmp_path / "nothing.pth"))
    assert "teacher.checkpoint: no file" in message
    assert "nothing.pth" in message
    assert "--cfg-options model.teacher.checkpoint=" in message


def test_folder(config, tmp_path):
    assert "teacher.checkpoint: no file" in refused(config, str(tmp_path))


def cut_in_half(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage",
    [cut_in_half, lambda _: b"", lambda _: b"epoch 12, mAP 0.49\n" * 9, lambda _: bytes(4096)],
    ids=["truncated", "empty", "text", "zeros"],
)
def test_damaged_file(config, teacher_checkpoint, tmp_path, damage):
    path = tmp_path / "damaged.pth"
    path.write_bytes(damage(Path(teacher_checkpoint).read_bytes()))
    message = refused(config, str(path))
    assert "teacher.checkpoint" in message
    assert "damaged.pth" in message
    assert "cannot be read" in message
    assert "truncated" in message


@pytest.mark.parametrize("content", [[1, 2], dict(state_dict=3), dict(epoch=4), torch.zeros(2)])
def test_file_without_weights(config, store, content):
    message = refused(config, store(content))
    assert "holds no weights" in message
    assert "state_dict" in message


def test_address_that_does_not_answer(config):
    message = refused(config, "http://127.0.0.1:9/teacher.pth")  # port 9: nobody listens
    assert "http://127.0.0.1:9/teacher.pth" in message
    assert "check the address and the network" in message


# Checkpoints that do not fit


def test_checkpoint_of_another_architecture(tmp_path, teacher_checkpoint):
    message = refused(dino_config(**TEACHER | dict(width=64)), teacher_checkpoint)
    assert "of another shape" in message
    assert "query_embedding.weight" in message or "and " in message
    assert " instead of " in message
    assert "Take the config that the checkpoint was trained with" in message
    assert len(message) < 2000


def test_one_shape_is_told_in_full(config, saved, store):
    saved["state_dict"]["query_embedding.weight"] = torch.zeros(20, DINO_WIDTH)
    message = refused(config, store(saved))
    told = f"query_embedding.weight (20, {DINO_WIDTH}) instead of (16, {DINO_WIDTH})"
    assert f"1 of another shape: {told}" in message
    assert "missing" not in message
    assert "unexpected" not in message


def test_missing_and_unexpected_keys_are_listed(config, saved, store):
    state = saved["state_dict"]
    state["roi_head.fc.weight"] = state.pop("query_embedding.weight")
    state["roi_head.fc.bias"] = state.pop("level_embed")
    message = refused(config, store(saved))
    assert "2 missing: level_embed, query_embedding.weight" in message
    assert "2 unexpected: roi_head.fc.bias, roi_head.fc.weight" in message
    assert "does not fit the config (DINO)" in message


def test_many_keys_are_counted_not_listed(config, saved, store):
    message = refused(config, store({f"x{i}": torch.zeros(1) for i in range(20)}))
    assert "20 unexpected: x0, x1, x10, x11, x12, x13, x14, x15, and 12 more" in message


def test_not_strict_loads_what_fits_and_logs_the_rest(config, saved, store, logged):
    state = saved["state_dict"]
    state["roi_head.fc.weight"] = state.pop("query_embedding.weight")
    teacher = build_teacher(config, store(saved), strict=False)
    warnings = [message for level, message in logged if level == logging.WARNING]
    assert len(warnings) == 1
    assert "1 missing: query_embedding.weight" in warnings[0]
    assert "1 unexpected: roi_head.fc.weight" in warnings[0]
    assert "strict=False" in warnings[0]
    loaded = teacher.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items() if k in loaded)


def test_not_strict_still_refuses_another_shape(config, saved, store):
    saved["state_dict"]["query_embedding.weight"] = torch.zeros(20, DINO_WIDTH)
    message = refused(config, store(saved), strict=False)
    assert f"(20, {DINO_WIDTH}) instead of (16, {DINO_WIDTH})" in message


# Every way to name a config


def test_config_in_every_form(config, teacher_checkpoint, saved, tmp_path):
    whole = Config(dict(model=config))
    path = tmp_path / "teacher.py"
    whole.dump(path)
    kd = dict(
        type="KDDETR",
        student=copy.deepcopy(config),
        teacher=dict(config="never_read.py", checkpoint=None),
    )
    forms = [config, config.to_dict(), whole, dict(model=config), str(path), path]
    forms += [kd, Config(dict(model=kd))]
    for form in forms:
        assert_loaded(build_teacher(form, teacher_checkpoint), saved["state_dict"])


def test_config_is_not_used_up(config, teacher_checkpoint):
    """MODELS.build changes the dict that it is given: a second build would fail."""
    before = copy.deepcopy(config)
    for _ in range(2):
        build_teacher(config, teacher_checkpoint)
    assert config == before


def test_mistakes_in_the_config_name_the_option(teacher_checkpoint):
    assert refused("nowhere.py", teacher_checkpoint).startswith("teacher.config: ")
    assert refused(42, teacher_checkpoint).startswith("teacher.config: ")


def test_checkpoints_of_the_tests_are_not_what_a_fresh_model_has(config, tmp_path):
    """Or the tests above could not tell loading from doing nothing."""
    path = random_checkpoint(tmp_path / "other.pth", config, seed=2)
    state = torch.load(path, weights_only=True)["state_dict"]
    fresh = build_teacher(config, None).state_dict()
    same = [k for k, v in fresh.items() if torch.equal(v, state[k])]
    assert all("num_batches_tracked" in name for name in same)


def test_a_ddq_that_mmdet_has_trained(store):
    # Its first training step gives some weights of the head a second name in the decoder.
    cfg = ddq_config()
    detector = build(cfg)
    detector.decoder.aux_reg_branches = detector.bbox_head.aux_reg_branches
    state = detector.state_dict()
    assert any(key.startswith("decoder.aux_reg_branches.") for key in state)
    teacher = build_teacher(cfg, store(dict(state_dict=state)))
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, state[key])


def test_an_untrained_teacher_is_at_least_finite(config):
    with torch.no_grad():  # what mmdet leaves uninitialised is whatever the memory held
        teacher = build_teacher(config, None)
    assert all(parameter.isfinite().all() for parameter in teacher.parameters())
    assert teacher.level_embed.abs().max() < 10 and teacher.level_embed.std() > 0.1
