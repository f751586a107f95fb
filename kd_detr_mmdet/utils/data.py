"""Data sets checked before a run touches anything."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

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
            classes that it does not know, and for images that are missing or empty.
    """
    seen = set()
    for name in loaders:
        for dataset in _coco_datasets((cfg.get(name) or {}).get("dataset")):
            keys = ("type", "ann_file", "data_root", "data_prefix", "metainfo")
            key = tuple(str(dataset.get(name)) for name in keys)
            if key not in seen:
                seen.add(key)
                _check_coco(dataset, f"{name}.dataset")


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
    _check_images(images, Path(root, prefix), where, str(ann_file))


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
