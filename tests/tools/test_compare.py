"""tools/compare.py: who is compared, and a whole report."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from conftest import TEACHER, dino_config, random_checkpoint
from mmengine.config import Config

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare", ROOT / "tools" / "compare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write(tmp_path, monkeypatch, teacher_checkpoint):
    """Writes the config of a tiny student alone or distilled; returns its path."""
    # Laying configs out to be read takes longer than all else.
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, False))
    shapes = generate_shapes(tmp_path / "shapes", {"train": 1, "val": 3}, (64, 48))

    def config(name):
        cfg = Config.fromfile(ROOT / "configs/demo/dino_alone.py")
        cfg.test_dataloader.dataset.data_root = str(shapes)
        cfg.test_evaluator.ann_file = str(shapes / "annotations/instances_val.json")
        cfg.model = dino_config()
        if name != "alone":
            teacher = dict(config=dino_config(**TEACHER), checkpoint=teacher_checkpoint)
            cfg.model = dict(type="KDDETR", student=dino_config(), teacher=teacher)
        cfg.dump(tmp_path / f"{name}.py")
        return str(tmp_path / f"{name}.py")

    return config


@pytest.fixture
def parse(tool, monkeypatch):
    """Parses arguments."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
        return tool.parse_args()

    return call


def test_who_is_compared(tool, write, parse, teacher_checkpoint):
    alone, kd, again = map(write, ("alone", "kd", "again"))
    args = parse("--teacher", alone, kd, "student.pth", again, kd, "other.pth")
    found = tool.contenders(args)
    assert [(c.name, c.checkpoint, c.is_teacher) for c in found] == [
        ("alone", None, False),
        ("DINO (teacher)", teacher_checkpoint, True),  # once
        ("kd student.pth", "student.pth", False),
        ("again", None, False),
        ("kd other.pth", "other.pth", False),
    ]
    assert [c.detector.num_queries for c in found] == [12, 16, 12, 12, 12]
    assert len(tool.contenders(parse(kd))) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["student.pth"], "'student.pth' is no config"),
        (["a.py", "one.pth", "two.pth"], "'two.pth' is no config"),
    ],
)
def test_checkpoints_follow_configs(tool, words, told):
    with pytest.raises(tool.ConfigError, match=told):
        tool.pairs(words)


def test_twice_the_same(tool, write, parse):
    alone = write("alone")
    with pytest.raises(tool.ConfigError, match="given twice"):
        tool.contenders(parse(alone, alone))


def test_a_whole_report(tool, write, parse, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "cpu_memory", lambda model, size, imports: 3 * 2**20)
    student = random_checkpoint(tmp_path / "student.pth", dino_config(), classes=SHAPE_CLASSES)
    options = ("--teacher", "--rounds", 2, "--size", 96, 64, "--out", tmp_path / "report")
    parse(*options, write("alone"), write("kd"), student)
    tool.main()
    text = capsys.readouterr().out
    assert (tmp_path / "report/compare.md").read_text() in text
    assert (tmp_path / "report/compare.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "report/compare.json").read_text())
    rows = report["rows"]
    assert list(rows) == ["alone", "DINO (teacher)", "kd"]
    assert rows["alone"]["AP"] is None and rows["alone"]["checkpoint"] is None
    for name in ("DINO (teacher)", "kd"):
        assert 0 <= rows[name]["AP"] <= 100
    assert rows["alone"]["gflops"] == rows["kd"]["gflops"] < rows["DINO (teacher)"]["gflops"]
    assert rows["alone"]["params_M"] == rows["kd"]["params_M"] > 0
    for row in rows.values():
        assert row["file_MB"] > 4 * row["params_M"]
        assert row["memory_MiB"] == 3 and row["image_size"] == [96, 64]
        assert row["ms"]["median"] > 0
    assert report["threads"] and report["rounds"] == 2
    lines = text.splitlines()
    assert lines[2].startswith("| alone | - | - | - | - | - |")
    assert f"| {rows['kd']['ms']['median']:.1f} |" in lines[4] and lines[4].endswith("| 3.0 |")


def test_without_any_ap_there_is_no_picture(tool, write, parse, tmp_path, monkeypatch, capsys):
    row = dict.fromkeys([*tool.AP_NAMES, "memory_MiB"])
    row.update(dict.fromkeys(("params_M", "gflops", "file_MB"), 1.0), image_size=[64, 48])
    row["ms"] = dict(median=5.0, first_quartile=4.0, last_quartile=6.0)
    monkeypatch.setattr(tool, "measure", lambda *_: dict(alone=row))
    parse(write("alone"), "--out", tmp_path / "report")
    tool.main()
    assert "there is no picture" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "compare.json",
        "compare.md",
    ]
