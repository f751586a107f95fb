"""tools/voc_to_coco.py: what it writes, worked out by hand, and what it refuses."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def xml(*objects):
    boxes = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, difficult, x1, y1, x2, y2 in objects
    )
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    return f"<annotation>{size}{boxes}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """Two images to train with and one to validate with; a third class is in none of them."""
    folder = tmp_path / "VOC"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    contents = dict(
        b=xml(("square", 0, 10, 5, 30, 48), ("disc", 1, 1, 2, 4, 4)),
        a=xml(),
        c=xml(("disc", 0, 7, 7, 7, 9), ("disc", 0, 0.5, 0, 3, 2)),
        unlisted=xml(("ring", 0, 1, 1, 2, 2)),
    )
    for name, content in contents.items():
        (folder / "Annotations" / f"{name}.xml").write_text(content)
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(name.encode())
    (folder / "ImageSets/Main/train.txt").write_text("b\na\n")
    (folder / "ImageSets/Main/val.txt").write_text("c")
    return folder


@pytest.fixture
def run(voc, tmp_path, monkeypatch, capsys):
    def tool():
        monkeypatch.setattr(sys, "argv", ["voc_to_coco.py", str(voc), str(tmp_path / "coco")])
        code = 0
        try:
            runpy.run_path(str(ROOT / "tools/voc_to_coco.py"), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return tool


def test_what_is_written(run, tmp_path):
    code, told, _ = run()
    assert code == 0
    assert told == [
        "train: 2 images, 2 boxes",
        "left out: an empty disc in c.jpg",
        "val: 1 images, 1 boxes",
        "classes = ('disc', 'square')",
    ]
    out = tmp_path / "coco"
    read = {
        s: json.loads((out / f"annotations/instances_{s}.json").read_text())
        for s in ("train", "val")
    }
    categories = [dict(id=1, name="disc"), dict(id=2, name="square")]
    assert read["train"] == dict(
        images=[
            dict(id=1, file_name="b.jpg", width=64, height=48),
            dict(id=2, file_name="a.jpg", width=64, height=48),
        ],
        annotations=[
            dict(id=1, image_id=1, category_id=2, bbox=[10, 5, 20, 43], area=860, iscrowd=0),
            # What is "difficult" is neither trained nor counted: in COCO's terms a crowd.
            dict(id=2, image_id=1, category_id=1, bbox=[1, 2, 3, 2], area=6, iscrowd=1),
        ],
        categories=categories,
    )
    assert read["val"] == dict(
        images=[dict(id=3, file_name="c.jpg", width=64, height=48)],
        annotations=[
            dict(id=3, image_id=3, category_id=1, bbox=[0.5, 0, 2.5, 2], area=5, iscrowd=0)
        ],
        categories=categories,
    )
    assert (out / "images/val/c.jpg").read_bytes() == b"c"
    assert sorted(path.name for path in (out / "images/train").iterdir()) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda voc: (voc / "ImageSets/Main/val.txt").unlink(), "no file .*val.txt"),
        (
            lambda voc: (voc / "JPEGImages/c.jpg").unlink(),
            "no image .*c.jpg, which .*val.txt lists",
        ),
        (lambda voc: (voc / "Annotations/c.xml").unlink(), "c.xml cannot be read as Pascal VOC"),
        (lambda voc: (voc / "Annotations/c.xml").write_text("<a>"), "c.xml cannot be read"),
        (lambda voc: (voc / "Annotations/c.xml").write_text("<a/>"), "c.xml cannot be read"),
    ],
)
def test_what_is_missing_or_damaged_is_told_and_nothing_written(run, voc, tmp_path, change, told):
    change(voc)
    code, _, err = run()
    assert code == 2
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert re.search(told, line)
    assert not (tmp_path / "coco").exists()


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "coco").mkdir()
    assert run()[0] == 0
    code, _, err = run()
    assert code == 2 and "exists already" in err
