"""tools/demo.py: its reports, and the whole of it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build, needs_dino_widths, random_checkpoint
from mmengine.config import Config

from kd_detr_mmdet.datasets import generate_shapes
from kd_detr_mmdet.utils.demo_report import write_report

ROOT = Path(__file__).parents[2]
demo = runpy.run_path(str(ROOT / "tools" / "demo.py"))


def test_the_summary_pairs_the_seeds():
    aps = dict(teacher=[0.5, 0.4], alone=[0.1, 0.3], distilled=[0.2, 0.5], alone_longer=[0.3, 0.5])
    reports = [
        {name: dict(bbox_mAP=values[i], train_seconds=10.0) for name, values in aps.items()}
        for i in range(2)
    ]
    text = demo["summarize"](reports)
    assert "| student alone (10 s of training) | 20.0 | 14.1 | 10.0 30.0 |" in text
    # 20 - 10 and 50 - 30, seed by seed; their spread is 7.1, not that of the students.
    assert "| gain of distilled over student alone | +15.0 | 7.1 | +10.0 +20.0 |" in text
    assert "twice as long | -5.0 | 7.1 | -10.0 +0.0 |" in text


@needs_dino_widths
def test_the_report_has_the_promised_keys_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the demo's configs read data/shapes below the working directory
    generate_shapes("data/shapes", {"train": 2, "val": 4}, (128, 96))
    points = [dict(iteration=10 * i, seconds=2.0 * i, bbox_mAP=0.1 * i) for i in (1, 2)]
    runs = {}
    for name, stock in demo["STOCK"].items():
        config = demo["config_path"](stock)
        runs[name] = dict(
            title=demo["NAMES"][name],
            config=config,
            checkpoint=random_checkpoint(tmp_path / f"{name}.pth", Config.fromfile(config).model),
            metrics={"coco/bbox_mAP": 0.25, "coco/bbox_mAP_50": 0.5},
            curve=points,
        )
    write_report(tmp_path, runs, begin=0.0, seed=3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seconds"] > 0
    for name in ("teacher", "alone", "distilled"):
        row = report[name]
        assert (row["bbox_mAP"], row["bbox_mAP_50"]) == (0.25, 0.5)
        assert (row["iterations"], row["train_seconds"]) == (20, 4.0)
        assert row["ms_per_image"] > 0
    plain = build(Config.fromfile(demo["config_path"]("dino_alone")).model)
    expected = sum(p.numel() for p in plain.parameters()) / 1e6
    assert report["distilled"]["params_M"] == report["alone"]["params_M"] == round(expected, 3)
    assert report["teacher"]["params_M"] > 3 * report["alone"]["params_M"]
    assert report["teacher"]["gflops"] > report["alone"]["gflops"] > 0
    text = (tmp_path / "report.md").read_text()
    assert "| student distilled | 25.0 | 50.0 | " in text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    torch.set_num_threads(1)


def test_no_epochs_are_no_demo(run):
    """0 was taken for no option, and the whole demo began."""
    code, line, _ = run("demo.py", "--epochs", 0)
    assert code == 2
    assert line.endswith("--epochs: must be an integer of at least 1, got '0'")


@pytest.mark.slow
def test_the_whole_demo_shortened(tmp_path):
    arguments = [
        sys.executable,
        str(ROOT / "tools/demo.py"),
        "--work-dir",
        tmp_path,
        "--epochs",
        "1",
    ]
    assert subprocess.run(arguments).returncode == 0
    assert json.loads((tmp_path / "report.json").read_text())["distilled"]["iterations"] == 75
