"""Data sets checked before a run touches anything."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from pathlib import Path

import mmcv
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config

from .errors import ConfigError

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def check_data(cfg: Config, loaders: tuple[str, ...] = LOADERS) -> None:
    """Check annotation and image files of a config's COCO-format data sets.

    Data sets in another format are left to MMDetection.

    Args:
        cfg: A whole config.
        loaders: The data loaders to check.

    Raises:
        ConfigError: For an annotation file that is missing, not JSON or without images, for
            classes that it does not know, for annotations without what MMDetection reads or with
            a box that is no four numbers, for data that a filter would leave nothing of, and for
            images that are missing or empty.
    """
    seen = set()
    for name in loaders:
        for dataset in _coco_datasets((cfg.get(name) or {}).get("dataset")):
            keys = ("type", "ann_file", "data_root", "data_prefix", "metainfo")
            key = tuple(str(dataset.get(name)) for name in keys)
            if key not in seen:
                seen.add(key)
                _check_coco(dataset, f"{name}.dataset")


def class_names(metainfo: dict | list[dict]) -> list[tuple[str, ...]]:
    """The class names that meta information of a data set, or of several that are joined, tells.

    Args:
        metainfo: Of mmdet's ``ConcatDataset`` a list, unless all its data sets have the same.

    Returns:
        list: Each different tuple of names once; empty where none is told.
    """
    entries = metainfo if isinstance(metainfo, (list, tuple)) else [metainfo]
    told = [entry.get("classes", entry.get("CLASSES")) for entry in entries]
    return list(dict.fromkeys(tuple(names) for names in told if names is not None))


def read_images(cfg: Config, loaders: tuple[str, ...] = LOADERS) -> Iterator[str | None]:
    """Read every image of a config's local COCO-format data sets, as training would.

    Args:
        cfg: A whole config that :func:`check_data` has passed.
        loaders: The data loaders whose images to read.

    Yields:
        str | None: For each image file what is wrong with it, or None.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    for name in loaders:
        for dataset in _coco_datasets((cfg.get(name) or {}).get("dataset")):
            root = dataset.get("data_root") or ""
            prefix = (dataset.get("data_prefix") or {}).get("img", "")
            if "://" in f"{root} {dataset['ann_file']} {prefix}":
                continue
            content = json.loads(Path(root, dataset["ann_file"]).read_bytes())
            for image in content["images"]:
                size = image["width"], image["height"]
                sizes[Path(root, prefix, image["file_name"])] = size
    with ThreadPoolExecutor() as pool:  # decoding does not hold Python's lock
        yield from pool.map(_problem_of, sizes, sizes.values())


def _problem_of(path: Path, size: tuple[int, int]) -> str | None:
    try:
        image = mmcv.imfrombytes(path.read_bytes())
    except Exception as error:  # OpenCV's error has no class of its own without an import
        reason = (str(error).strip().splitlines() or [""])[-1]
        return f"{path}: cannot be read ({type(error).__name__}: {reason})"
    if image is None:
        return f"{path}: is no image, or cut off"
    if image.shape[1::-1] != tuple(size):
        return (
            f"{path}: is {image.shape[1]} x {image.shape[0]} pixels, but the annotation file says "
            f"{size[0]} x {size[1]}; was it turned by its EXIF orientation after annotating?"
        )
    return None


def _coco_datasets(dataset: dict | None) -> Iterator[dict]:
    """The COCO-format data sets inside wrappers (repeated, concatenated, ...)."""
    if not isinstance(dataset, dict):
        return
    for inner in [dataset.get("dataset"), *(dataset.get("datasets") or [])]:
        yield from _coco_datasets(inner)
    kind = dataset.get("type")
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if isinstance(kind, type) and issubclass(kind, CocoDataset) and dataset.get("ann_file"):
        yield dataset


def _check_coco(dataset: dict, where: str) -> None:
    root = dataset.get("data_root") or ""
    prefix = (dataset.get("data_prefix") or {}).get("img", "")
    if "://" in f"{root} {dataset['ann_file']} {prefix}":
        return  # a remote store: MMEngine's file clients fetch it
    ann_file = Path(root, dataset["ann_file"])
    if not ann_file.is_file():
        raise ConfigError(f"{where}: no annotation file {str(ann_file)!r}: check data_root")
    try:
        content = json.loads(ann_file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{where}: {str(ann_file)!r} is not valid JSON ({error})") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not images:
        raise ConfigError(
            f"{where}: {str(ann_file)!r} lists no images: COCO format needs 'images', "
            "'annotations' and 'categories'"
        )
    known = {category.get("name") for category in content.get("categories") or []}
    kind = DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    classes = (dataset.get("metainfo") or {}).get("classes") or kind.METAINFO.get("classes", ())
    classes = (classes,) if isinstance(classes, str) else classes
    absent = [name for name in classes if name not in known]
    if absent:
        raise ConfigError(
            f"{where}: {str(ann_file)!r} knows no class {', '.join(map(repr, absent[:5]))}; it has "
            f"{', '.join(map(repr, sorted(map(str, known))[:10]))}: set metainfo=dict(classes=...)"
        )
    _check_annotations(content, where, str(ann_file))
    if (dataset.get("filter_cfg") or {}).get("filter_empty_gt") and not dataset.get("test_mode"):
        ids = {c.get("id") for c in content["categories"] if c.get("name") in classes}
        if not any(a["category_id"] in ids for a in content.get("annotations") or []):
            raise ConfigError(
                f"{where}: no image of {str(ann_file)!r} has a box of the classes, and "
                "filter_cfg.filter_empty_gt=True leaves such images out: nothing is left"
            )
    _check_images(images, Path(root, prefix), where, str(ann_file))


def _check_annotations(content: dict, where: str, ann_file: str) -> None:
    """Refuse what MMDetection fails at without naming it, or trains on to a NaN."""
    for image in content["images"]:
        if not {"id", "width", "height"} <= set(image):
            raise ConfigError(
                f"{where}: an image of {ann_file!r} lacks 'id', 'width' or 'height': {image}"
            )
    files = {image["id"]: image.get("file_name") for image in content["images"]}
    for annotation in content.get("annotations") or []:
        named = (
            f"annotation {annotation.get('id')!r} of {ann_file!r}, image "
            f"{files.get(annotation.get('image_id'))!r},"
        )
        lacks = {"bbox", "area", "category_id"} - set(annotation)
        if lacks:
            raise ConfigError(f"{where}: {named} lacks {', '.join(map(repr, sorted(lacks)))}")
        box = annotation["bbox"]
        if len(box) != 4 or not all(isinstance(v, (int, float)) and isfinite(v) for v in box):
            raise ConfigError(f"{where}: {named} has no box of four numbers: {box}")


def _check_images(images: list[dict], folder: Path, where: str, ann_file: str) -> None:
    sizes: dict[Path, dict[str, int]] = {}
    bad = []
    for image in images:
        if "file_name" not in image:
            raise ConfigError(f"{where}: an image of {ann_file!r} has no 'file_name': {image}")
        path = folder / image["file_name"]
        if path.parent not in sizes:  # one listing a folder: a stat each takes minutes on COCO
            found = os.scandir(path.parent) if path.parent.is_dir() else ()
            sizes[path.parent] = {e.name: e.stat().st_size for e in found if e.is_file()}
        if not sizes[path.parent].get(path.name):
            bad.append(path)
    if bad:
        what = "is an empty file" if bad[0].is_file() else "does not exist"
        raise ConfigError(
            f"{where}: {len(bad)} of {len(images)} images of {ann_file!r} cannot be read; "
            f"{str(bad[0])!r} {what}: check data_prefix"
        )
