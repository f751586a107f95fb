"""The generated data set: determinism, right boxes, and nothing lost or left half-written."""

import json
import os
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes, shapes

SMALL = {"splits": {"train": 4, "val": 3}, "image_size": (96, 64)}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def annotations(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """150 images of the default size, generated once."""
    return generate_shapes(tmp_path_factory.mktemp("shapes") / "data", {"train": 150})


def test_two_generations_are_byte_equal(tmp_path):
    first = contents(generate_shapes(tmp_path / "a", **SMALL))
    assert first == contents(generate_shapes(str(tmp_path / "b"), **SMALL))
    assert len(first) == 7 + 2 + 1


def test_another_process_draws_the_same(tmp_path):
    # Python's own hash() of a string, for one, differs between processes.
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('s', sys.argv[1]);"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "m.generate_shapes(sys.argv[2], {'val': 2}, (64, 64), 9)"
    )
    for hash_seed in "12":
        command = [sys.executable, "-c", code, shapes.__file__, str(tmp_path / hash_seed)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_seed_and_split_change_the_images(tmp_path):
    zero = contents(generate_shapes(tmp_path / "a", **SMALL))
    one = contents(generate_shapes(tmp_path / "b", **SMALL, seed=1))
    images = [zero[k] for k in zero if k.suffix == ".png"]
    images += [one[k] for k in one if k.suffix == ".png"]
    assert len(set(images)) == 14


def test_growing_a_split_keeps_its_first_images(tmp_path):
    few = generate_shapes(tmp_path / "few", {"val": 3}, (96, 64))
    # More of the split, and another split generated before it.
    many = generate_shapes(tmp_path / "many", {"train": 2, "val": 6}, (96, 64))
    for path, content in contents(few / "images").items():
        assert (many / "images" / path).read_bytes() == content
    few, many = annotations(few, "val"), annotations(many, "val")
    for key in ("images", "annotations"):
        assert few[key] == many[key][: len(few[key])]
    assert len(many["images"]) == 6


def test_coco_reads_it(larger):
    coco = COCO(str(larger / "annotations" / "instances_train.json"))
    assert coco.getImgIds() == list(range(1, 151))
    assert [c["name"] for c in coco.loadCats([1, 2, 3, 4])] == list(SHAPE_CLASSES)
    items = coco.loadAnns(coco.getAnnIds())
    assert [a["id"] for a in items] == list(range(1, len(items) + 1))
    for item in items:
        x, y, w, h = item["bbox"]
        assert x >= 0 and y >= 0 and w >= 2 and h >= 2 and x + w <= 160 and y + h <= 120
        assert 0.2 * w * h < item["area"] <= 1.01 * w * h and item["iscrowd"] == 0
    for info in coco.loadImgs([1, 150]):
        image = cv2.imread(str(larger / "images" / "train" / info["file_name"]))
        assert image.shape == (120, 160, 3) == (info["height"], info["width"], 3)


def test_classes_counts_and_sizes_are_spread(larger):
    items = annotations(larger, "train")["annotations"]
    classes = Counter(a["category_id"] for a in items)
    assert sorted(classes) == [1, 2, 3, 4]
    assert min(classes.values()) > 0.7 * max(classes.values())
    counts = Counter(a["image_id"] for a in items)
    assert set(counts.values()) == set(range(1, 7))
    assert 1 <= 150 - len(counts) <= 9  # about 2 % of the images are empty
    sides = np.array([max(a["bbox"][2:]) for a in items])
    assert (sides < 20).mean() > 0.1 and (sides > 32).mean() > 0.1
    cut = [min(a["bbox"][:2]) == 0 for a in items]
    assert 0.02 < np.mean(cut) < 0.4


def test_colour_hints_at_the_class_but_does_not_tell(larger):
    """The nearest mean colour is better than chance (1 in 3), but wrong for many objects."""
    images = [cv2.imread(str(p)) for p in sorted((larger / "images" / "train").iterdir())]
    colors = {1: [], 2: [], 3: []}  # a ring's centre is background
    for item in annotations(larger, "train")["annotations"]:
        x, y, w, h = item["bbox"]
        if item["category_id"] in colors:
            pixel = images[item["image_id"] - 1][int(y + h / 2), int(x + w / 2)]
            colors[item["category_id"]].append(pixel)
    means = np.array([np.mean(c, axis=0) for c in colors.values()])
    hits = [
        np.linalg.norm(means - pixel, axis=1).argmin() == label
        for label, pixels in enumerate(colors.values())
        for pixel in pixels
    ]
    assert 0.5 < np.mean(hits) < 0.85


def test_letters_are_written_on_8_bits(monkeypatch):
    # OpenCV 5 refuses any other, where OpenCV 4 takes it.
    seen, put = [], shapes.cv2.putText
    monkeypatch.setattr(
        shapes.cv2, "putText", lambda image, *args: seen.append(image.dtype) or put(image, *args)
    )
    for index in range(20):
        shapes.draw_image(0, "train", index, (128, 96))
    assert set(seen) == {np.dtype("uint8")}


def test_painted_object_stands_out():
    mask, _ = shapes.render_shape(shapes.shape_outline("disc", (32, 32), 30), (64, 64))
    for seed in range(200):
        canvas = np.full((64, 64, 3), 128, np.float32)
        shapes._paint(np.random.default_rng(seed), canvas, mask, seed % 4)
        assert np.linalg.norm(canvas[mask == 1].mean(axis=0) - 128) > 50
        assert (canvas[mask == 0] == 128).all()


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("name", SHAPE_CLASSES)
def test_box_and_area_of_one_shape(name, angle):
    # Expected extents from plane geometry, not from the code's own outline.
    size, center = 30.0, np.array([41.3, 37.8])
    area = {"disc": np.pi / 4, "ring": np.pi / 4 * (1 - 0.25), "square": 0.81}
    area["triangle"] = 3 * 3**0.5 / 4 * 0.62**2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = {
        "square": 13.5 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),
        "triangle": 18.6 * np.array([[0, -1], [0.75**0.5, 0.5], [-(0.75**0.5), 0.5]]),
    }
    if name in corners:
        points = corners[name] @ turn.T
        low, high = points.min(axis=0), points.max(axis=0)
    else:
        low, high = np.full(2, -15.0), np.full(2, 15.0)
    outline = shapes.shape_outline(name, center, size, angle, hole=0.5)
    mask, (x, y, w, h) = shapes.render_shape(outline, (96, 80))
    assert mask.shape == (80, 96) and mask.min() == 0 and mask.max() == 1
    np.testing.assert_allclose([x, y, x + w, y + h], [*(center + low), *(center + high)], atol=0.35)
    assert mask.sum() == pytest.approx(area[name] * size**2, rel=0.06)
    ys, xs = np.nonzero(mask > 0)
    assert abs(xs.min() - x) <= 1 and abs(xs.max() + 1 - x - w) <= 1
    assert abs(ys.min() - y) <= 1 and abs(ys.max() + 1 - y - h) <= 1
    assert (mask[37, 41] == 0) == (name == "ring")


def test_box_of_a_shape_cut_by_the_border():
    # A diamond whose right corner lies outside: what is left is shorter in x only.
    outline = shapes.shape_outline("square", (60, 30), 20 / 0.9, np.pi / 4)
    _, box = shapes.render_shape(outline, (64, 64))
    half = 10 * 2**0.5
    np.testing.assert_allclose(box, [60 - half, 30 - half, 4 + half, 2 * half], atol=0.6)
    # Centre outside: the widest part is cut away, so the box is smaller than the clipped full box.
    outline = shapes.shape_outline("square", (72, 30), 20 / 0.9, np.pi / 4)
    _, (x, y, w, h) = shapes.render_shape(outline, (64, 64))
    assert x + w == 64 and h == pytest.approx(2 * (half - 8), abs=0.6)
    outline = shapes.shape_outline("disc", (200, 30), 20)
    assert shapes.render_shape(outline, (64, 64))[1] == [0, 0, 0, 0]


def test_annotated_boxes_are_those_of_the_painted_masks(monkeypatch):
    masks, paint = [], shapes._paint
    monkeypatch.setattr(
        shapes,
        "_paint",
        lambda rng, canvas, m, label: (masks.append(m), paint(rng, canvas, m, label)),
    )
    for index in range(1, 41):
        masks.clear()
        _, objects = shapes.draw_image(3, "train", index, (160, 120))
        assert len(objects) == len(masks)
        for i, (item, mask) in enumerate(zip(objects, masks)):
            ys, xs = np.nonzero(mask)
            x, y, w, h = item["bbox"]
            tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_allclose([x, y, x + w, y + h], tight, atol=1)
            assert item["area"] == pytest.approx(mask.sum(), abs=0.01)
            later = np.prod([1 - m for m in masks[i + 1 :]], axis=0)
            assert (mask * later).sum() > 0.35 * mask.sum()


def test_second_call_rewrites_nothing(tmp_path):
    root = generate_shapes(tmp_path / "data", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in [root, *root.rglob("*")]}
    (root / "note.txt").write_text("kept")  # also shows that nothing is moved or checked
    assert generate_shapes(tmp_path / "data", **SMALL) == root
    assert {p: p.stat().st_mtime_ns for p in before if p != root} == {
        p: t for p, t in before.items() if p != root
    }
    assert (root / "note.txt").read_text() == "kept"


def test_other_parameters_replace_the_data(tmp_path):
    root = generate_shapes(tmp_path / "data", **SMALL)
    generate_shapes(root, {"train": 2}, (64, 64), seed=4)
    assert contents(root) == contents(generate_shapes(tmp_path / "b", {"train": 2}, (64, 64), 4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "data"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_interruption_leaves_nothing_half_written(tmp_path, monkeypatch, error, existing):
    root = tmp_path / "data"
    if existing:
        generate_shapes(root, {"train": 1}, (64, 64))
    before = contents(root) if existing else None
    draw = shapes.draw_image

    def fail_midway(seed, split, index, image_size):
        if (split, index) == ("val", 2):
            raise error
        return draw(seed, split, index, image_size)

    monkeypatch.setattr(shapes, "draw_image", fail_midway)
    with pytest.raises(error):
        generate_shapes(root, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == (["data"] if existing else [])
    assert before is None or contents(root) == before


def test_failing_move_restores_the_old_data(tmp_path, monkeypatch):
    root = generate_shapes(tmp_path / "data", {"train": 1}, (64, 64))
    before, rename = contents(root), type(root).rename

    def fail_for_new(self, target):
        if self.name == "new":
            raise OSError("disk")
        return rename(self, target)

    monkeypatch.setattr(type(root), "rename", fail_for_new)
    with pytest.raises(OSError, match="disk"):
        generate_shapes(root, **SMALL)
    assert contents(root) == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "marker",
    [None, "{", '{"format": "other"}', '{"format": "kd-detr-shapes", "splits": {"a": "x"}}'],
)
def test_foreign_folder_is_refused(tmp_path, monkeypatch, marker):
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    (root / "images" / "holiday.png").write_text("precious")
    if marker is not None:
        (root / "dataset.json").write_text(marker)
    before = contents(root)
    monkeypatch.delattr(shapes, "draw_image")  # refused before any work is done
    with pytest.raises(ValueError, match="mine"):
        generate_shapes(root, **SMALL)
    assert contents(root) == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("extra", ["notes.txt", "images/train/900000.png", "images/other/"])
def test_foreign_file_in_our_folder_is_refused(tmp_path, extra):
    root = generate_shapes(tmp_path / "data", {"train": 1}, (64, 64))
    if extra.endswith("/"):
        (root / extra).mkdir()
    else:
        (root / extra).write_text("precious")
    with pytest.raises(ValueError, match="data"):
        generate_shapes(root, **SMALL)
    assert (root / extra).exists()


def test_file_is_refused_and_empty_folder_and_link_are_used(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="file"):
        generate_shapes(tmp_path / "file", **SMALL)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    generate_shapes(tmp_path / "link", **SMALL)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "dataset.json").is_file()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"root": 7}, "7"),
        ({"splits": {}}, "{}"),
        ({"splits": [("train", 3)]}, "'train', 3"),
        ({"splits": {"train": 0}}, "got 0"),
        ({"splits": {"train": True}}, "got True"),
        ({"splits": {"train": 2.5}}, "2.5"),
        ({"splits": {"../up": 2}}, "../up"),
        ({"splits": {3: 2}}, "got 3"),
        ({"image_size": (31, 64)}, "31"),
        ({"image_size": 64}, "64"),
        ({"image_size": (64.0, 64)}, "64.0"),
        ({"image_size": (64, 64, 3)}, "64, 64, 3"),
        ({"seed": -1}, "-1"),
        ({"seed": "0"}, "'0'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, change, named):
    arguments = {"root": tmp_path / "data", **SMALL, **change}
    with pytest.raises(ValueError) as caught:
        generate_shapes(**arguments)
    assert named in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_unknown_shape_is_named():
    with pytest.raises(ValueError, match="hexagon"):
        shapes.shape_outline("hexagon", (5, 5), 3)


def test_smallest_images_work():
    for index in range(1, 20):
        image, _ = shapes.draw_image(0, "train", index, (32, 32))
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
