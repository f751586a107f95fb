"""tools/export.py: the file it writes is all that is needed, and says what the student says."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DINO_MILLIONS, build, dino_config, plain_text, random_checkpoint
from mmengine.config import Config

from kd_detr_mmdet.utils.onnx_export import Difference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/deploy.md"


def exported(folder):
    """The one file of weights in a folder, and its content."""
    (path,) = folder.glob("*.pth")
    return path, torch.load(path, weights_only=True)  # so it is data, by PyTorch's own list


def test_a_distilled_student_with_averaged_weights(write_config, run, tmp_path):
    config = write_config(
        custom_hooks=[dict(type="EMAHook", momentum=0.3)],
        **{"train_dataloader.batch_size": 4},
        **{"val_evaluator.outfile_prefix": str(tmp_path / "validated")},  # by averaged weights
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
    assert str(path) in told and f"DINO, {DINO_MILLIONS} M parameters, 4 classes" in told
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
    assert len(tested) == 8 * 12 and tested == validated


def test_onnx_and_the_program_of_the_docs(write_config, run, tmp_path, shapes):
    checkpoint = random_checkpoint(tmp_path / "c.pth", dino_config())
    config = write_config(
        distilled=False, **{"test_evaluator.outfile_prefix": str(tmp_path / "tested")}
    )
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.pipeline[2].scale = (48, 36)  # of images of 64 x 48 pixels
    Path(config).write_text(plain_text(cfg))
    image = shapes / "images/val/000001.png"
    code, _, told = run(
        "export.py", config, checkpoint, "--onnx", "--size", 48, 36, "--check", image
    )
    assert code == 0
    path, _ = exported(tmp_path / "work")
    model = path.with_name(f"{path.stem}-48x36.onnx")  # beside those of other sizes
    assert sorted(path.parent.iterdir()) == sorted([path, model])
    assert f"{model}: " in told
    assert re.search(r"1 images: scores differ by \d\.\de-\d+ at most \(allowed: 0\.001\)", told)

    assert run("test.py", config, path)[0] == 0
    tested = json.loads((tmp_path / "tested.bbox.json").read_text())
    program = re.search(r"```python\n(import json\n.*?)```", DOCS.read_text(), re.S)[1]
    program = program.replace("score >= 0.3", "score >= 0")
    keep = "np.savez(sys.argv[3], boxes=boxes, scores=scores, labels=labels)\n"
    absent = (
        "import sys\nsys.modules.update(dict.fromkeys(['torch', 'mmdet', 'mmcv', 'mmengine']))\n"
    )
    (tmp_path / "program.py").write_text(absent + program + keep)
    arguments = [model, image, tmp_path / "found.npz"]
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"(disc|square|triangle|ring) 0\.\d\d( -?\d+){4}\n", done.stdout)
    found = np.load(tmp_path / "found.npz")
    boxes = np.concatenate(
        [found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], 1
    )
    of_image = [row for row in tested if row["image_id"] == 1]
    np.testing.assert_allclose(found["scores"], [row["score"] for row in of_image], atol=1e-5)
    np.testing.assert_allclose(boxes, [row["bbox"] for row in of_image], atol=1e-2)
    assert [*found["labels"] + 1] == [row["category_id"] for row in of_image]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--onnx",), "--onnx and --size W H go together"),
        (("--size", 48, 32), "--onnx and --size W H go together"),
        (("--check", "x.png"), "--onnx and --size W H go together"),
        (("--onnx", "--size", 48, 32, "--check", "none.png"), "none.png"),
        (("--onnx", "--size", 48, 32, "--check", __file__), "no image that OpenCV can read"),
        (("--onnx", "--size", 0, 32), "--size 0 32"),
    ],
)
def test_bad_onnx_options(write_config, run, tmp_path, arguments, told):
    checkpoint = random_checkpoint(tmp_path / "c.pth", dino_config())
    code, line, _ = run("export.py", write_config(distilled=False), checkpoint, *arguments)
    assert code == 2
    assert line.startswith("error: ") and told in line
    assert not (tmp_path / "work").exists()


def test_nothing_is_written_where_the_two_differ(write_config, run, tmp_path, monkeypatch):
    other = Difference(0.0, 9.0)
    monkeypatch.setattr("kd_detr_mmdet.utils.onnx_export.compare", lambda *_: other)
    monkeypatch.setattr("kd_detr_mmdet.utils.onnx_export.export_onnx", lambda *_: b"model")
    checkpoint = random_checkpoint(tmp_path / "c.pth", dino_config())
    arguments = ("--onnx", "--size", 48, 32)
    code, line, _ = run("export.py", write_config(distilled=False), checkpoint, *arguments)
    assert code == 2
    assert "differ from PyTorch's by 0 in scores and 9 pixels in boxes" in line
    assert not (tmp_path / "work").exists()


def test_a_full_disk_leaves_nothing(write_config, run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    checkpoint = random_checkpoint(tmp_path / "c.pth", dino_config())
    monkeypatch.setattr("os.fsync", full)
    code, line, _ = run("export.py", write_config(distilled=False), checkpoint)
    assert code == 2 and "No space left on device" in line
    assert [*(tmp_path / "work").iterdir()] == []
