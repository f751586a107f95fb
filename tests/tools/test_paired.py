"""tools/paired.py: its table, worked by hand, and what it refuses."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def row(title, *aps, iterations=600):
    results = {
        str(seed): dict(bbox_mAP=ap / 100, iterations=iterations) for seed, ap in enumerate(aps)
    }
    return dict(title=title, results=results)


@pytest.fixture
def paired(monkeypatch, capsys, tmp_path):
    """Runs the tool on a report of three runs: (exit code, output, stderr)."""
    rows = dict(alone=row("student alone", 20, 30), kd=row("distilled", 24, 31), k=row("one", 21.5))
    path = tmp_path / "report.json"
    path.write_text(json.dumps(dict(rows=rows, machine="mine")))

    def tool(run, report=path):
        monkeypatch.setattr(sys, "argv", ["paired.py", str(report), run])
        code = 0
        try:
            runpy.run_path(str(ROOT / "tools" / "paired.py"), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return tool


def test_the_table(paired):
    code, out, _ = paired("alone")
    assert code == 0
    # +4 and +1: mean 2.5, t(0.975, 1) = 12.7062 times a standard error of 1.5.
    assert out.splitlines() == [
        "| AP ahead of student alone | mean | 95 % interval | by seed |",
        "|---|---|---|---|",
        "| distilled | +2.5 | -16.6 to +21.6 | +4.0 (0), +1.0 (1) |",
        "| one | +1.5 |  | +1.5 (0) |",
    ]
    assert paired("kd")[1].splitlines()[2].startswith("| student alone | -2.5 | -21.6 to +16.6 |")


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no file"), ("# Report", "is no report of tools/study.py"), ("{}", "is no report")],
)
def test_what_is_no_report(paired, tmp_path, content, told):
    other = tmp_path / "other"
    if content is not None:
        other.write_text(content)
    code, out, err = paired("alone", other)
    assert (code, out) == (2, "")
    assert told in err and str(other) in err and len(err.splitlines()) == 1
    assert content is None or other.read_text() == content


def test_an_unknown_run(paired):
    code, _, err = paired("aline")
    assert code == 2
    assert "no run 'aline' in this report; it has 'alone', 'kd', 'k'" in err
