"""tools/export.py: the file it writes is all that is needed, and says what the student says."""

import hashlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import TEACHER, build, dino_config, noisy, random_checkpoint
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes

ROOT = Path(__file__).parents[2]
SIZE = (96, 64)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """8 + 4 generated images."""
    folder = tmp_path_factory.mktemp("export") / "shapes"
    return generate_shapes(folder, {"train": 8, "val": 4}, SIZE)


@pytest.fixture
def write_config(tmp_path, shapes, teacher_checkpoint):
    """Writes the config of a tiny student alone or distilled; options override by dotted key."""

    def write(model=None, distilled=False, **options):
        cfg = Config.fromfile(ROOT / "configs/demo/dino_alone.py")
        cfg.model = model or dino_config()
        for loader in ("train", "val", "test"):
            dataset = cfg[f"{loader}_dataloader"].dataset
            dataset.data_root = str(shapes)
            dataset.pipeline[2].scale = SIZE
        annotations = str(shapes / "annotations/instances_val.json")
        cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = annotations
        cfg.train_cfg.max_epochs = 1
        cfg.work_dir = str(tmp_path / "work")
        if distilled:
            teacher = dict(config=dino_config(**TEACHER), checkpoint=teacher_checkpoint)
            cfg.model = dict(
                type="KDDETR", student=cfg.model, teacher=teacher, points=dict(num_general=10)
            )
        cfg.merge_from_dict(options)
        path = tmp_path / ("distilled.py" if distilled else "alone.py")
        path.write_text("".join(f"{k} = {v!r}\n" for k, v in cfg.to_dict().items()))
        return str(path)

    return write


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a tool in this process: (exit code, last line of stderr, stdout)."""
    # Asking the compilers for their versions, and formatting a Runner's config, takes longer than
    # all the rest.
    monkeypatch.setattr("mmengine.runner.runner.collect_env", lambda: {"Python": "3"})

    def tool(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        with monkeypatch.context() as patch:
            if name != "export.py":
                patch.setattr(Config, "pretty_text", "")
            try:
                runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
            except SystemExit as stop:
                code = stop.code
        out, err = capfd.readouterr()
        return code, (err.strip().splitlines() or [""])[-1], out

    return tool


def exported(folder):
    """The one file of weights in a folder, and its content."""
    (path,) = folder.glob("*.pth")
    return path, torch.load(path, weights_only=True)  # so it is data, by PyTorch's own list


def test_a_distilled_student_with_averaged_weights(write_config, run, tmp_path):
    config = write_config(
        distilled=True,
        custom_hooks=[dict(type="EMAHook", momentum=0.3)],
        train_dataloader=dict(batch_size=4),
        val_evaluator=dict(outfile_prefix=str(tmp_path / "validated")),  # of averaged weights
    )
    assert run("train.py", config)[0] == 0
    checkpoint = tmp_path / "work/epoch_1.pth"
    out = tmp_path / "deploy/student"
    no_teacher = ("--cfg-options", "model.teacher.checkpoint=gone.pth")
    code, _, told = run("export.py", config, checkpoint, "--out", out, *no_teacher)
    assert code == 0
    path, content = exported(out.parent)
    assert re.fullmatch(r"student-[0-9a-f]{8}\.pth", path.name)
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:8] == path.stem[-8:]
    assert str(path) in told and "DINO, 0.09 M parameters, 4 classes" in told
    assert [*out.parent.iterdir()] == [path]

    assert set(content) == {"meta", "state_dict"}
    weights = content["state_dict"]
    build(dino_config()).load_state_dict(weights, strict=True)
    last = torch.load(checkpoint, weights_only=False)["ema_state_dict"]
    assert not all(torch.equal(weights[key], last[f"module.{key}"]) for key in weights)
    assert path.stat().st_size < 0.5 * checkpoint.stat().st_size

    # With the config that is in it, the file says what the student said at its last validation.
    alone = tmp_path / "from_file.py"
    alone.write_text(content["meta"]["cfg"])
    assert "teacher" not in alone.read_text() and "optim" not in alone.read_text()
    predicted = f"test_evaluator.outfile_prefix={tmp_path / 'tested'}"
    assert run("test.py", alone, path, "--cfg-options", predicted)[0] == 0
    validated, tested = (
        json.loads((tmp_path / f"{name}.bbox.json").read_text()) for name in ("validated", "tested")
    )
    assert len(tested) == 4 * 12 and tested == validated


def test_the_file_alone_makes_a_detector(write_config, run, tmp_path, shapes):
    checkpoint = random_checkpoint(tmp_path / "c.pth", dino_config(), classes=SHAPE_CLASSES)
    assert run("export.py", write_config(), checkpoint)[0] == 0
    path, _ = exported(tmp_path / "work")
    assert path.name.startswith("alone-")

    meta = torch.load(path, weights_only=True)["meta"]
    detector = init_detector(Config.fromstring(meta["cfg"], ".py"), str(path), device="cpu")
    found = inference_detector(detector, str(next((shapes / "images/val").iterdir())))

    assert detector.dataset_meta["classes"] == SHAPE_CLASSES
    expected = noisy(dino_config()).eval()
    expected.cfg = detector.cfg
    again = inference_detector(expected, found.img_path)
    for name in ("bboxes", "scores", "labels"):
        assert torch.equal(found.pred_instances[name], again.pred_instances[name])


def test_the_name_tells_the_content(write_config, run, tmp_path):
    checkpoint = random_checkpoint(tmp_path / "c.pth", dino_config())
    for folder in ("a", "b"):
        assert (
            run("export.py", write_config(), checkpoint, "--out", tmp_path / folder / "x")[0] == 0
        )
    (first, content), (second, _) = exported(tmp_path / "a"), exported(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes() and first.name == second.name
    assert content["meta"]["dataset_meta"]["classes"] == SHAPE_CLASSES  # the config's
    other = random_checkpoint(tmp_path / "d.pth", dino_config(), seed=2)
    assert run("export.py", write_config(), other, "--out", tmp_path / "c/x")[0] == 0
    assert exported(tmp_path / "c")[0].name != first.name


@pytest.mark.parametrize(
    ("options", "classes", "told"),
    [
        ({}, SHAPE_CLASSES[::-1], "was trained on classes (ring, triangle, square, disc"),
        ({"model.bbox_head.num_classes": 5}, None, "of another shape"),
        ({"test_dataloader.dataset.metainfo.classes": ("a", "b")}, None, "names for 2: (a, b"),
        ({"test_dataloader": None}, None, "no test_dataloader"),
    ],
)
def test_what_is_refused(write_config, run, tmp_path, options, classes, told):
    checkpoint = random_checkpoint(tmp_path / "c.pth", dino_config(), classes=classes)
    code, line, _ = run("export.py", write_config(**options), checkpoint)
    assert code == 2
    assert line.startswith("error: ") and told in line
    assert not (tmp_path / "work").exists()


def test_a_full_disk_leaves_nothing(write_config, run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    checkpoint = random_checkpoint(tmp_path / "c.pth", dino_config())
    monkeypatch.setattr("os.fsync", full)
    code, line, _ = run("export.py", write_config(), checkpoint)
    assert code == 2 and "No space left on device" in line
    assert [*(tmp_path / "work").iterdir()] == []
