"""tools/check_teacher.py: when it warns, and what it tells."""

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import TEACHER, dino_config, random_checkpoint
from mmengine.config import Config

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes

ROOT = Path(__file__).resolve().parents[2]
FOUND = dict(AP=30.0, AP50=50.0, AP75=25.0, AP_small=10.0, AP_medium=40.0, AP_large=None)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "check_teacher", ROOT / "tools" / "check_teacher.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path, teacher_checkpoint):
    """A distillation of tiny models on 3 generated images."""
    shapes = generate_shapes(tmp_path / "shapes", {"train": 1, "val": 3}, (64, 48))
    cfg = Config.fromfile(ROOT / "configs/demo/dino_alone.py")
    cfg.val_dataloader.dataset.data_root = str(shapes)
    cfg.val_evaluator.ann_file = str(shapes / "annotations/instances_val.json")
    teacher = dict(config=dino_config(**TEACHER), checkpoint=teacher_checkpoint)
    cfg.model = dict(type="KDDETR", student=dino_config(), teacher=teacher)
    return cfg


@pytest.fixture
def run(tool, tmp_path, monkeypatch, capsys):
    """Runs the tool: its exit code and what it prints."""

    # Laying configs out to be read takes longer than all else.
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, False))

    def call(cfg, *arguments):
        cfg.dump(tmp_path / "kd.py")
        monkeypatch.setattr(
            sys, "argv", ["check_teacher.py", str(tmp_path / "kd.py"), *map(str, arguments)]
        )
        return tool.main(), capsys.readouterr().out

    return call


@pytest.fixture
def found(tool, monkeypatch):
    """What was evaluated, with figures made up: by name, the arguments of the evaluation."""
    asked = {}

    def evaluate(model, loader, evaluator, images, classes):
        asked.update(model=model, images=images, classes=classes)
        asked["in front"] = "predict" in vars(model)
        return FOUND

    monkeypatch.setattr(tool, "evaluate", evaluate)
    return asked


def test_a_whole_run_of_a_teacher_that_is_worse(config, run):
    config.model.teacher.ap = 45.5
    code, out = run(config)  # of random weights
    assert code == 1
    assert "on 3 of 3 images" in out and "the first is 128x96" in out
    assert "the config states AP 45.5" in out and " less. " in out
    assert "the checkpoint does not tell the teacher's classes" in out


@pytest.mark.parametrize(
    ("stated", "arguments", "code", "told"),
    [
        (None, [], 0, "the config states no AP"),
        (31.5, [], 0, "as it should be (within 2)"),
        (32.5, [], 1, "has 2.5 less"),
        (27.0, [], 1, "has 3.0 more"),
        (32.5, ["--tolerance", 3], 0, "within 3"),
        (39.0, ["--images", 2], 0, "within 10"),
        (41.0, ["--images", 2], 1, "2 images are few"),
        (39.0, ["--images", 3], 1, "has 9.0 less"),
    ],
)
def test_when_it_warns(config, run, found, stated, arguments, code, told):
    config.model.teacher.ap = stated
    got, out = run(config, *arguments)
    assert got == code and told in out
    assert "AP 30.0, AP50 50.0" in out and "AP_large -" in out
    assert found["in front"] and found["classes"] == SHAPE_CLASSES
    assert "predict" not in vars(found["model"])  # the student is back


def test_reasons_are_those_of_the_config(config, run, found, tmp_path):
    classes = ("square", "tree", "disc", "house")
    theirs = dino_config(**TEACHER)
    theirs.data_preprocessor.update(mean=[0.0] * 3)
    checkpoint = random_checkpoint(tmp_path / "teacher.pth", theirs, classes=classes)
    config.model.update(class_map="names")
    config.model.teacher.update(config=theirs, checkpoint=checkpoint, ap=60.0, strict=False)
    code, out = run(config)
    assert code == 1 and found["classes"] == ("disc", "square")
    assert "the shared classes alone: disc, square" in out
    assert "strict=False" in out
    assert "normalise pixels in two ways" in out
    assert "does not tell" not in out


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        (dict(model=dino_config()), [], "not a distillation's"),
        (dict(val_dataloader=None), [], "no 'val_dataloader'"),
        ({"model.teacher.checkpoint": None}, [], "random weights has no AP"),
        ({"model.teacher.ap": 0.45}, [], "in percent"),
        ({}, ["--images", 0], "--images must be above 0"),
    ],
)
def test_what_cannot_be_checked(config, run, tool, change, arguments, told):
    if "model" in change:
        config.model = change["model"]
    else:
        config.merge_from_dict(change)
    with pytest.raises(tool.ConfigError, match=told):
        run(config, *arguments)
