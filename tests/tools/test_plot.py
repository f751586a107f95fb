"""tools/plot.py: what is read, chosen and drawn, and what it refuses."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("plot", ROOT / "tools" / "plot.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log(tmp_path):
    """Writes the log of a run, two iterations long; returns its work directory."""

    def write(name, losses=(4.0, 2.0), ap=0.25, **more):
        folder = tmp_path / name / "20260101_000000" / "vis_data"
        folder.mkdir(parents=True)
        rows = [
            dict(loss=loss, time=0.5, iter=10 * number, step=10 * number, **more)
            for number, loss in enumerate(losses, 1)
        ]
        rows.append({"coco/bbox_mAP": ap, "step": 1})
        (folder / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


@pytest.fixture
def run(tool, monkeypatch):
    """Runs the tool and returns what is drawn: by the panel's title, by run, its x and y."""

    def call(*arguments):
        drawn = {}

        def keep(figure, path):
            for axes in figure.axes:
                if axes.get_visible():
                    lines = [line for line in axes.lines if line.get_alpha() is None]
                    drawn[axes.get_title()] = {
                        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
                        for line in lines
                    }
            save(figure, path)

        save = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", keep)
        monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, arguments)])
        try:
            tool.main()
        finally:
            monkeypatch.setattr(Figure, "savefig", save)
        return drawn

    return call


def test_several_runs_in_one_picture(log, run, tmp_path):
    out = tmp_path / "new" / "curves.svg"
    kd = log("kd", ap=-1.0, kd_loss_general_cls=1.0, **{"d0.kd_loss_general_cls": 9.0})
    drawn = run(log("alone"), kd, "--out", out, "--curves", "bbox_mAP", "kd_loss_*", "loss")
    assert list(drawn) == ["bbox_mAP (%)", "kd_loss_general_cls", "loss"]
    assert drawn["loss"] == dict(alone=([10, 20], [4.0, 2.0]), kd=([10, 20], [4.0, 2.0]))
    assert drawn["bbox_mAP (%)"]["alone"] == ([20], [25.0])
    assert math.isnan(drawn["bbox_mAP (%)"]["kd"][1][0])  # COCO's -1: there is no AP
    assert drawn["kd_loss_general_cls"]["kd"] == ([10, 20], [1.0, 1.0])
    assert math.isnan(drawn["kd_loss_general_cls"]["alone"][1][0])  # in the legend alone
    assert "<svg" in out.read_text()


def test_over_seconds_and_smoothed(log, run, tmp_path):
    arguments = ("--over", "seconds", "--smooth", 0.5, "--out", tmp_path / "curves.png")
    drawn = run(log("alone"), *arguments)
    # Of two values, the later weighs twice as much as the earlier; an evaluation is left alone.
    assert drawn["loss"]["alone"] == ([5.0, 10.0], [4.0, pytest.approx((4 + 2 * 2) / 3)])
    assert drawn["bbox_mAP (%)"]["alone"] == ([10.0], [25.0])


def test_smoothing_passes_over_what_is_not_finite(tool):
    values = tool.smoothed([math.nan, 1.0, math.inf, 1.0], 0.9)
    assert math.isnan(values[0]) and values[1:] == pytest.approx([1.0] * 3)


def test_runs_are_told_apart_by_their_parents(tool, tmp_path):
    paths = [tmp_path / "kd" / "seed-0", tmp_path / "alone" / "seed-0"]
    assert tool.run_names(paths) == ["kd/seed-0", "alone/seed-0"]
    assert tool.run_names(paths[:1]) == ["seed-0"]
    with pytest.raises(tool.ConfigError, match="given twice"):
        tool.run_names([paths[0], paths[0]])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--curves", "los"), "no run has logged a curve 'los'; logged: bbox_mAP, loss, time"),
        (("--smooth", 1), "--smooth must be at least 0 and below 1"),
        (("--out", "curves.jpg"), "--out must end in .png, .svg or .pdf"),
    ],
)
def test_what_cannot_be_drawn(log, run, tool, arguments, told):
    with pytest.raises(tool.ConfigError, match=told):
        run(log("alone"), *arguments)


def test_a_folder_without_logs(log, run, tool, tmp_path):
    with pytest.raises(tool.ConfigError, match="holds no logs"):
        run(log("alone"), tmp_path)
