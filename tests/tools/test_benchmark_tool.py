"""tools/benchmark.py: whole reports of tiny models, and what it refuses."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from conftest import TEACHER, dino_config
from mmengine.config import Config

from kd_detr_mmdet.datasets import generate_shapes
from kd_detr_mmdet.utils import benchmark as bench

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """5 + 2 generated images."""
    folder = tmp_path_factory.mktemp("benchmark") / "shapes"
    return generate_shapes(folder, {"train": 5, "val": 2}, (96, 64))


@pytest.fixture
def write_config(tmp_path, shapes):
    """Writes the config of a tiny distillation without a checkpoint; options by dotted key."""

    def write(**options):
        cfg = Config.fromfile(ROOT / "configs/demo/dino_alone.py")
        cfg.train_dataloader.dataset.data_root = str(shapes)
        cfg.train_dataloader.dataset.pipeline[2].scale = (96, 64)
        teacher = dict(config=dino_config(**TEACHER), checkpoint="no/such.pth")
        cfg.model = dict(
            type="KDDETR", student=dino_config(), teacher=teacher, points=dict(num_general=10)
        )
        cfg.merge_from_dict(options)
        cfg.dump(tmp_path / "tiny.py")
        return str(tmp_path / "tiny.py")

    return write


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the tool in this process: (exit code, last line of stderr, stdout)."""

    def tool(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "tools" / "benchmark.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, (err.strip().splitlines() or [""])[-1], out

    return tool


def test_a_report_on_generated_images(write_config, run, tmp_path):
    out = tmp_path / "new" / "report"
    code, _, text = run(
        *(write_config(), "--size", 96, 64, "--batch-size", 2, "--steps", 2, "--out", out),
        *("--cfg-options", "model.points.num_general=7"),
    )
    assert code == 0
    assert (out / "benchmark.md").read_text() in text
    assert "**Overhead ratio " in text
    assert "random weights" in text
    assert "Peak memory on a CPU: --memory" in text
    assert "7 general (uniform)" in text
    report = json.loads((out / "benchmark.json").read_text())
    for label in (*report["summary"]["parts"], "student alone, training step", "both"):
        assert f"| {label} | " in text
    expected = dict(
        images="generated",
        image_sizes=[[96, 64]],
        batch_size=2,
        steps=2,
        warm_up=bench.WARM_UP,
        amp=None,
        teacher_weights="random",
        device="CPU",
        options={"model.points.num_general": 7},
    )
    assert {key: report[key] for key in expected} == expected
    assert len(report["rounds"]) == 2
    assert report["machine"] and report["torch"] and report["threads"]
    ratios = [r["kd"] / (r["student"] + r["teacher"]) for r in report["rounds"]]
    assert report["summary"]["ratio"]["median"] == pytest.approx(sum(ratios) / 2)


def test_a_report_on_the_configs_images(write_config, run, teacher_checkpoint):
    config = write_config(**{"model.teacher.checkpoint": teacher_checkpoint})
    code, _, text = run(config, "--real", "--steps", 1, "--batch-size", 2, "--amp", "bfloat16")
    assert code == 0
    assert "Real images of 96x64 pixels in batches of 2; precision bfloat16" in text
    assert "random weights" not in text
    assert text.lstrip().startswith("# Cost of a distilled step: tiny")


def test_memory_is_a_column_where_it_is_measured():
    parts = {bench.STUDENT_FORWARD: 0.1, bench.TEACHER_FORWARD: 0.05}
    memory = dict(student=100 * 2**20, teacher=50 * 2**20, kd=165 * 2**20)
    measured = bench.Round(0.3, 0.1, 0.05, 0.7, 0.2, (64, 32), parts, memory)
    report = dict.fromkeys(
        ("student", "teacher", "points", "amp", "device", "machine", "torch", "commit"), "x"
    )
    report.update(title="t", config="c", options={}, images="generated", image_sizes=[(64, 32)])
    report.update(batch_size=2, steps=1, warm_up=2, threads=1, teacher_weights="teacher.pth")
    report.update(processor_time=True)
    report["summary"] = bench.summarize([measured])
    text = bench.markdown(report)
    assert "| student alone, training step | 300 | 300 to 300 | 100 |" in text
    assert "| both | 350 | 350 to 350 | 150 |" in text
    assert "| distilled student, training step | 700 | 700 to 700 | 165 |" in text
    assert "Peak memory over both: 1.10." in text
    assert "**Overhead ratio 2.00**" in text
    assert f"| {bench.REMAINDER} | 500 | 71.4% | 300 |" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--steps", 0), "--steps must be at least 1, got 0"),
        (("--batch-size", -1), "--batch-size must be at least 1, got -1"),
        (("--size", 31, 96), "--size must be at least 32 32, got 31 96"),
        (("--real", "--size", 96, 64), "--size is for generated images"),
        (("--real", "--batch-size", 6), "train_dataloader has no 6 images"),
        (("--amp", "float16"), "needs a GPU"),
        (
            ("--cfg-options", "val_dataloader.dataset.pipeline=[]"),
            "tells no image size: give --size W H",
        ),
        (
            ("--real", "--cfg-options", "train_dataloader.dataset.data_root=no/such"),
            "no annotation file",
        ),
    ],
)
def test_bad_options(write_config, run, arguments, told):
    code, line, _ = run(write_config(), *arguments)
    assert code == 2
    assert line.startswith("error: ")
    assert told in line


def test_a_config_that_is_no_distillations(run):
    code, line, _ = run(ROOT / "configs/demo/dino_alone.py")
    assert (code, line) == (2, "error: the config is not a distillation's: its model is no KDDETR")
