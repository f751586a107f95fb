"""A small generated detection data set in COCO format: coloured shapes on cluttered backgrounds.

Coordinates are continuous pixels: pixel ``i`` covers ``[i, i + 1)``, the image ``[0, width)``.
"""

import json
import os
import re
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np

SHAPE_CLASSES = ("disc", "square", "triangle", "ring")
DEFAULT_SPLITS = MappingProxyType({"train": 400, "val": 120})

_FORMAT, _VERSION = "kd-detr-shapes", 2  # raise the version whenever an image or a box changes
_SUPERSAMPLE = 4  # masks are drawn this much larger, then averaged down
_MIN_VISIBLE = 0.4  # of an object's area inside the image, after later objects are drawn
_MIN_INSIDE = 0.5  # of an object's whole area
_MIN_SIZE = 14  # pixels
_LETTERS = list("AEFHKLMNTVXYZ147")  # none that looks like a ring


def shape_outline(name, center, size, angle=0.0, hole=0.55):
    """Outline of one shape.

    Args:
        name: one of ``SHAPE_CLASSES``.
        center: ``(x, y)`` of the circumscribed circle's centre, in pixels.
        size: disc and ring: diameter; square: side / 0.9; triangle: circumscribed circle's
            diameter / 1.24 (so that shapes of one size look about equally large). In pixels, > 0.
        angle: clockwise turn in radians.
        hole: a ring's inner over outer diameter, in (0, 1).

    Returns:
        List of float arrays of shape (points, 2): the contour, then a ring's inner contour.

    Raises:
        ValueError: ``name`` is not in ``SHAPE_CLASSES``.
    """
    if name not in SHAPE_CLASSES:
        raise ValueError(f"unknown shape {name!r}; known: {SHAPE_CLASSES}")
    corners, radii = {
        "disc": (64, [0.5]),
        "ring": (64, [0.5, 0.5 * hole]),
        "square": (4, [0.45 * 2**0.5]),
        "triangle": (3, [0.62]),
    }[name]
    # Angle 0: a square's sides lie along the axes, a triangle points up.
    turn = angle + (np.pi / 4 if name == "square" else -np.pi / 2)
    t = turn + 2 * np.pi * np.arange(corners) / corners
    unit = np.stack([np.cos(t), np.sin(t)], axis=1)
    return [np.asarray(center, dtype=float) + size * radius * unit for radius in radii]


def render_shape(outline, image_size):
    """Anti-aliased mask of one outline and its tight box.

    Args:
        outline: contours as from :func:`shape_outline`, filled by the even-odd rule.
        image_size: ``(width, height)`` in pixels.

    Returns:
        ``(mask, box)``: float32 coverage in [0, 1] of shape (height, width), and
        ``[x, y, w, h]`` in pixels of the part inside the image, to about 0.25 px; all 0 when no
        part of the shape is inside.
    """
    width, height = image_size
    large = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), np.uint8)
    # OpenCV puts integer coordinates at pixel centres, hence the half; 4 bits of sub-pixels.
    points = [np.rint((c * _SUPERSAMPLE - 0.5) * 16).astype(np.int32) for c in outline]
    cv2.fillPoly(large, points, 255, lineType=cv2.LINE_8, shift=4)
    box = [v / _SUPERSAMPLE for v in cv2.boundingRect(large)]
    mask = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    return mask.astype(np.float32) / 255, box


def _background(rng, width, height):
    """Float BGR canvas: a linear gradient plus low-frequency colour noise, mostly mid-tones."""
    turn = rng.uniform(0, 2 * np.pi)
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    ramp = np.cos(turn) * across + np.sin(turn) * down
    canvas = rng.uniform(60, 190, 3) + ramp[..., None] * rng.uniform(-35, 35, 3)
    for cells, strength in ((4, 22), (14, 9)):
        grid = rng.normal(0, strength, (cells, cells, 1))
        grid = grid + rng.normal(0, strength / 2, (cells, cells, 3))
        canvas += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(canvas, 0, 255).astype(np.float32)


def _clutter(rng, canvas, count):
    """Draw ``count`` strokes, arcs, blobs and letters, which are not annotated, onto ``canvas``."""
    height, width = canvas.shape[:2]
    unit = min(width, height)
    for _ in range(count):
        kind = rng.integers(4)
        at = rng.uniform(0, (width, height))
        x, y = (int(v) for v in at)
        color = tuple(float(v) for v in rng.uniform(0, 255, 3))
        layer = canvas.copy()
        if kind == 0:  # straight or broken line
            steps = rng.normal(0, 0.22 * unit, (rng.integers(1, 4), 2))
            path = np.rint(np.vstack([at, at + np.cumsum(steps, axis=0)])).astype(np.int32)
            cv2.polylines(layer, [path], False, color, int(rng.integers(1, 3)), cv2.LINE_AA)
        elif kind == 1:  # open arc: too short to be taken for a ring
            axes = tuple(int(v) for v in rng.uniform(0.06, 0.35, 2) * unit + 2)
            start, span, tilt = rng.uniform(0, 360), rng.uniform(40, 160), rng.uniform(0, 180)
            cv2.ellipse(layer, (x, y), axes, tilt, start, start + span, color, 1, cv2.LINE_AA)
        elif kind == 2:  # specks, smaller than any object
            for dx, dy in rng.normal(0, 5, (rng.integers(1, 5), 2)):
                axes = (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
                spot = (int(x + dx), int(y + dy))
                cv2.ellipse(layer, spot, axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
        else:
            text = "".join(rng.choice(_LETTERS, rng.integers(1, 5)))
            scale = rng.uniform(0.25, 0.5)
            written = np.zeros((height, width), np.uint8)  # OpenCV 5 writes on 8 bits only
            cv2.putText(written, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_8)
            layer[written > 0] = color
        alpha = rng.uniform(0.4, 0.9)
        canvas += alpha * (layer - canvas)


def _color(rng, label):
    """A colour that mostly hints at the class, as an animal's fur does: BGR."""
    if rng.random() < 0.2:
        return rng.uniform(0, 255, 3)
    hue = (180 * label / len(SHAPE_CLASSES) + rng.normal(0, 8)) % 180
    hsv = np.uint8([[[hue, rng.uniform(120, 255), rng.uniform(120, 255)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(float)


def _paint(rng, canvas, mask, label):
    """Blend one object in, in a colour that is clearly unlike what surrounds and underlies it."""
    near = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0.5
    around = canvas[near].mean(axis=0)
    least = 60 if rng.random() < 0.1 else 100  # Euclidean distance in BGR; a few are harder
    color = _color(rng, label)
    while np.linalg.norm(color - around) < least:
        color = _color(rng, label)
    height, width = mask.shape
    shade = cv2.resize(rng.normal(0, 7, (6, 6)), (width, height), interpolation=cv2.INTER_CUBIC)
    filled = color + shade[..., None]
    canvas += mask[..., None] * (filled.astype(np.float32) - canvas)


def draw_image(seed, split, index, image_size):
    """Draw one image; its content depends on nothing but the arguments.

    Args:
        seed: integer >= 0.
        split: name of the split.
        index: number of the image in its split, >= 1.
        image_size: ``(width, height)`` in pixels, each >= 32.

    Returns:
        ``(image, objects)``: uint8 BGR of shape (height, width, 3), and a list, back to front,
        of dicts with ``label`` (index into ``SHAPE_CLASSES``), ``bbox`` (``[x, y, w, h]``) and
        ``area`` (square pixels), both of the shape inside the image, covered parts included.
    """
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    width, height = image_size
    canvas = _background(rng, width, height)
    _clutter(rng, canvas, int(rng.integers(1, 6)))
    objects, visible = [], []
    wanted = 0 if rng.random() < 0.02 else int(rng.integers(1, 7))
    for _ in range(wanted):
        label = int(rng.integers(len(SHAPE_CLASSES)))
        for _ in range(20):  # a place that hides nothing may not exist: then there is one fewer
            size = np.exp(rng.uniform(np.log(_MIN_SIZE), np.log(0.55 * min(width, height))))
            center, angle = rng.uniform(0, (width, height)), rng.uniform(0, 2 * np.pi)
            hole = rng.uniform(0.45, 0.65)
            outline = shape_outline(SHAPE_CLASSES[label], center, size, angle, hole)
            mask, box = render_shape(outline, image_size)
            area = float(mask.sum())
            whole, *holes = (cv2.contourArea(c.astype(np.float32)) for c in outline)
            if area < _MIN_INSIDE * (whole - sum(holes)) or min(box[2:]) < 4:
                continue
            left = [seen * (1 - mask) for seen in visible]
            if all(m.sum() >= _MIN_VISIBLE * o["area"] for m, o in zip(left, objects)):
                visible = [*left, mask]
                objects.append({"label": label, "bbox": box, "area": round(area, 2)})
                _paint(rng, canvas, mask, label)
                break
    _clutter(rng, canvas, int(rng.integers(0, 3)))  # some in front of the objects
    canvas = (canvas - 128) * rng.uniform(0.75, 1.1) + 128 + rng.uniform(-35, 35)
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.2, 0.8))
    canvas += rng.normal(0, rng.uniform(1, 8), canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), objects


def _write_split(folder, split, count, image_size, seed):
    """Write one split's images, then its annotation file, under ``folder``."""
    images, annotations = [], []
    (folder / "images" / split).mkdir(parents=True)
    for index in range(1, count + 1):
        image, objects = draw_image(seed, split, index, image_size)
        name = f"{index:06d}.png"
        (folder / "images" / split / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
        width, height = image_size
        images.append({"id": index, "file_name": name, "width": width, "height": height})
        for item in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": item["label"] + 1,
                    "bbox": item["bbox"],
                    "area": item["area"],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPE_CLASSES, start=1)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))


def _read_marker(root):
    """Content of ``dataset.json`` as a dict, or None where there is none of ours."""
    try:
        marker = json.loads((root / "dataset.json").read_text())
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("format") == _FORMAT else None


def _check_replaceable(root, marker):
    """Raise ValueError unless ``root`` is absent, empty, or holds nothing but our files."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    splits = marker.get("splits") if marker else None
    if not isinstance(splits, dict) or not all(_is_int(n, 1) for n in splits.values()):
        raise ValueError(f"{root} exists and is not a generated shapes data set: not replaced")
    ours = {root / "dataset.json", root / "images", root / "annotations"}
    for split, count in splits.items():
        ours.update((root / "images" / split, root / "annotations" / f"instances_{split}.json"))
        ours.update(root / "images" / split / f"{i:06d}.png" for i in range(1, count + 1))
    for path in root.rglob("*"):
        if path not in ours or path.is_symlink():
            raise ValueError(f"{root} holds {path.name}, which was not generated: not replaced")


def _is_int(value, least):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least


def _parameters(splits, image_size, seed):
    """Check the arguments of :func:`generate_shapes`; return them as the marker's content."""
    if not isinstance(splits, Mapping) or not splits:
        raise ValueError(f"splits must map names to numbers of images, got {splits!r}")
    for name, count in splits.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"a split's name must be letters, digits, '_' or '-', got {name!r}")
        if not _is_int(count, 1):
            raise ValueError(f"split {name!r} needs a positive number of images, got {count!r}")
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
        raise ValueError(f"image_size must be (width, height), got {image_size!r}")
    if not all(_is_int(v, 32) for v in image_size):
        raise ValueError(f"image_size must be integers >= 32, got {image_size!r}")
    if not _is_int(seed, 0):
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "splits": {name: int(count) for name, count in splits.items()},
        "image_size": [int(v) for v in image_size],
        "seed": int(seed),
    }


def holds_shapes(root, splits, image_size, seed):
    """Whether ``root`` holds what :func:`generate_shapes` would write there."""
    return _read_marker(Path(root).resolve()) == _parameters(splits, image_size, seed)


def generate_shapes(root, splits=DEFAULT_SPLITS, image_size=(160, 120), seed=0):
    """Write the data set, unless ``root`` already holds it, and return its folder.

    Layout: ``images/<split>/000001.png``, ``annotations/instances_<split>.json`` (COCO format,
    ids from 1, categories in the order of ``SHAPE_CLASSES``) and ``dataset.json`` (parameters).
    An image holds 0 to 6 shapes, 14 px to 55 % of its shorter side in size (as
    :func:`shape_outline` measures it). Boxes and areas are amodal under occlusion, that is of the
    whole shape although later shapes may cover up to 60 % of it, and are cut at the image's
    border; at least half of a shape lies inside. Image ``i`` of a split depends only on the
    seed, the split's name, ``i`` and the image size. Files are byte-equal between runs with
    the same NumPy and OpenCV builds.

    Args:
        root: folder to write, ``str`` or ``os.PathLike``; parents are made. A data set
            generated with other parameters is replaced.
        splits: number of images, >= 1, by split name (letters, digits, ``_`` and ``-``).
        image_size: ``(width, height)`` in pixels, integers >= 32.
        seed: integer >= 0.

    Returns:
        pathlib.Path: ``root``.

    Raises:
        ValueError: an argument is out of range or of the wrong type, or ``root`` exists and
            holds anything that was not generated here (nothing is deleted then).
        OSError: a file cannot be written; ``root`` is then as it was.
    """
    if not isinstance(root, (str, os.PathLike)):
        raise ValueError(f"root must be a path, got {root!r}")
    wanted = _parameters(splits, image_size, seed)
    root = Path(root)
    place = root.resolve()  # a link stays a link: what it points to is replaced
    marker = _read_marker(place)
    if marker == wanted:
        return root
    _check_replaceable(place, marker)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        for split, count in wanted["splits"].items():
            _write_split(new, split, count, wanted["image_size"], wanted["seed"])
        (new / "dataset.json").write_text(json.dumps(wanted, indent=2) + "\n")
        if _read_marker(place) == wanted:  # another process was faster
            return root
        _check_replaceable(place, _read_marker(place))
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except OSError:
            if _read_marker(place) == wanted:
                return root
            if old.exists():
                old.rename(place)
            raise
    return root
