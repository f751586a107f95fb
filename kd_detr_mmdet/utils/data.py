"""Data sets checked before a run touches anything."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import mmcv
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.logging import print_log

from .configs import model_config
from .errors import ConfigError, brief, shorten

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


class Boxes(NamedTuple):
    """What MMDetection makes of the annotations of one file.

    Attributes:
        of_class: Number of boxes that are trained on, for each class.
        left_out: Number of the others: crowds, other classes, sides below a pixel, outside of their
            image, or of an image that the file does not list.
        beyond: How many of the first reach beyond their image by more than a pixel.
    """

    of_class: Counter[str]
    left_out: int
    beyond: int


def check_data(cfg: Config, loaders: tuple[str, ...] = LOADERS) -> None:
    """Check annotation and image files of a config's COCO-format data sets.

    Data sets in another format are left to MMDetection.

    Args:
        cfg: A whole config.
        loaders: The data loaders to check, and the evaluators beside them.

    Raises:
        ConfigError: For an annotation file that is missing, not JSON or without images, for
            classes that it does not know, for annotations without what MMDetection reads, with
            a box that is no four numbers or with ids that are not unique or lead nowhere, for data
            without any box to train on or to measure by, for images that are missing or empty, for
            loaders of different classes, for a head that scores another number of them, and for an
            evaluator that reads other images than its loader.
    """
    seen: dict[tuple, int | None] = {}
    for name in loaders:
        numbers = []
        judges = _evaluators(cfg, name)
        kinds = [getattr(judge.get("type"), "__name__", str(judge.get("type"))) for judge in judges]
        to_measure = any(kind.endswith("CocoMetric") for kind in kinds) and not any(
            judge.get("format_only") for judge in judges
        )
        for dataset in _coco_datasets((cfg.get(name) or {}).get("dataset")):
            keys = ("type", "ann_file", "data_root", "data_prefix", "metainfo")
            key = (to_measure, *(str(dataset.get(name)) for name in keys))
            if key not in seen:
                seen[key] = _check_coco(dataset, f"{name}.dataset", to_measure)
            numbers.append(seen[key])
        # One of several joined data sets may be of images without objects.
        if (to_measure or name == "train_dataloader") and set(numbers) == {0}:
            dataset = next(_coco_datasets(cfg[name].dataset))
            raise ConfigError(
                f"{name}.dataset: {str(_ann_file(dataset))!r} has no box of the classes that "
                "counts: boxes are [x, y, width, height] in pixels, at least one pixel large, "
                "within their image and no crowd"
            )
        _check_evaluators(cfg, name)
    _check_classes(cfg, loaders)


def boxes_by_class(content: dict, classes: tuple[str, ...]) -> Boxes:
    """Count what MMDetection's ``CocoDataset`` takes of an annotation file's content."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    known = content.get("categories") or []
    names = {c.get("id"): c["name"] for c in known if c.get("name") in classes}
    of_class, beyond = Counter(dict.fromkeys(classes, 0)), 0
    annotations = content.get("annotations") or []
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        across, down = sizes.get(annotation["image_id"], (0, 0))
        inside = min(x + width, across) > max(x, 0) and min(y + height, down) > max(y, 0)
        large = annotation["area"] > 0 and width >= 1 and height >= 1
        name = names.get(annotation["category_id"])
        if inside and large and name is not None and not annotation.get("iscrowd"):
            of_class[name] += 1
            beyond += min(x, y) < -1 or x + width > across + 1 or y + height > down + 1
    return Boxes(of_class, len(annotations) - of_class.total(), beyond)


def count_boxes(cfg: Config, loaders: tuple[str, ...] = LOADERS) -> Iterator[str]:
    """Tell in a line for each local COCO-format data set how many boxes of which class it has.

    Args:
        cfg: A whole config that :func:`check_data` has passed.
        loaders: The data loaders to look at.
    """
    for name in loaders:
        for dataset in _coco_datasets((cfg.get(name) or {}).get("dataset")):
            if _is_remote(dataset):
                continue
            content = json.loads(_ann_file(dataset).read_bytes())
            boxes = boxes_by_class(content, _classes_of(dataset))
            listed = ", ".join(f"{name} {count:,}" for name, count in boxes.of_class.items())
            told = (
                f"{name}: {len(content['images']):,} images, {boxes.of_class.total():,} boxes: "
                f"{listed}"
            )
            if boxes.left_out:
                told += (
                    f"; {boxes.left_out:,} annotations left out (crowds, other classes, sides "
                    "below a pixel, outside of their image, or of none that is listed)"
                )
            if boxes.beyond:
                told += (
                    f"; {boxes.beyond:,} boxes reach beyond their image: are all "
                    "[x, y, width, height] in pixels?"
                )
            yield told


def class_lists(metainfo: dict | list[dict]) -> list[tuple[str, ...]]:
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
            if _is_remote(dataset) or not _names_files(dataset):
                continue
            content = json.loads(_ann_file(dataset).read_bytes())
            for image in content["images"]:
                size = image["width"], image["height"]
                sizes[_image_folder(dataset) / image["file_name"]] = size
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
    kind = _kind(dataset)
    if isinstance(kind, type) and issubclass(kind, CocoDataset) and dataset.get("ann_file"):
        yield dataset


def _ann_file(dataset: dict) -> Path:
    return Path(dataset.get("data_root") or "", dataset["ann_file"])


def _image_folder(dataset: dict) -> Path:
    prefix = (dataset.get("data_prefix") or {}).get("img", "")
    return Path(dataset.get("data_root") or "", prefix)


def _is_remote(dataset: dict) -> bool:
    """Whether it lies in a remote store, which MMEngine's file clients fetch."""
    prefix = (dataset.get("data_prefix") or {}).get("img", "")
    return "://" in f"{dataset.get('data_root')} {dataset['ann_file']} {prefix}"


def check_labels(cfg: Config, loader: str, trained: tuple[str, ...] | None) -> None:
    """Refuse to evaluate a detector where one of its classes has another label.

    Classes of other names are only warned of: they may be the same by another name.

    Args:
        cfg: A whole config.
        loader: Which of its data loaders is evaluated on.
        trained: The classes of the detector's checkpoint; None if it does not tell.

    Raises:
        ConfigError: If a class stands at another place in the data set's.
    """
    for dataset in _coco_datasets((cfg.get(loader) or {}).get("dataset")):
        classes = _classes_of(dataset)
        if not trained or classes == trained:
            continue
        told = (
            f"the checkpoint was trained on classes {brief(trained)}, but {loader}.dataset has "
            f"{brief(classes)}"
        )
        moved = [name for label, name in enumerate(trained) if name in classes[:label]]
        moved += [name for label, name in enumerate(classes) if name in trained[:label]]
        if moved:
            raise ConfigError(
                f"{told}: a label is a place in this order, and {moved[0]!r} has another. Take the "
                "classes that it was trained with"
            )
        print_log(f"{told}: their labels are taken for the same", "current", level=30)


def _kind(dataset: dict) -> type | None:
    """A data set's class; None if nobody knows it."""
    kind = dataset.get("type")
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def _names_files(dataset: dict) -> bool:
    """Whether images are where ``file_name`` says: LVIS and Objects365 have ways of their own."""
    return _kind(dataset).load_data_list is CocoDataset.load_data_list


def _classes_of(dataset: dict) -> tuple[str, ...]:
    kind = _kind(dataset)
    classes = (dataset.get("metainfo") or {}).get("classes") or kind.METAINFO.get("classes", ())
    return (classes,) if isinstance(classes, str) else tuple(classes)


def _read_coco(path: Path, where: str) -> dict:
    """The content of an annotation file that has images."""
    if not path.is_file():
        raise ConfigError(f"{where}: no annotation file {str(path)!r}: check data_root")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{where}: {str(path)!r} is not valid JSON ({error})") from error
    if not (content.get("images") if isinstance(content, dict) else None):
        raise ConfigError(
            f"{where}: {str(path)!r} lists no images: COCO format needs 'images', "
            "'annotations' and 'categories'"
        )
    return content


def _check_coco(dataset: dict, where: str, to_measure: bool) -> int | None:
    """Check one data set; its number of boxes, or None if it lies elsewhere."""
    if _is_remote(dataset):
        return None
    path = _ann_file(dataset)
    content = _read_coco(path, where)
    known = {category.get("name") for category in content.get("categories") or []}
    classes = _classes_of(dataset)
    absent = [name for name in classes if name not in known]
    if absent:
        raise ConfigError(
            f"{where}: {str(path)!r} knows no class {', '.join(map(repr, absent[:5]))}; it has "
            f"{', '.join(map(repr, sorted(map(str, known))[:10]))}: set metainfo=dict(classes=...)"
        )
    if isinstance((dataset.get("metainfo") or {}).get("classes"), str):
        raise ConfigError(
            f"{where}: metainfo.classes is the text {classes[0]!r}, each of whose letters would "
            f"count as a class: for one class write ({classes[0]!r},), with the comma"
        )
    _check_annotations(content, where, str(path), to_measure)
    if _names_files(dataset):
        _check_images(content["images"], _image_folder(dataset), where, str(path))
    return boxes_by_class(content, classes).of_class.total()


def _check_annotations(content: dict, where: str, ann_file: str, to_measure: bool) -> None:
    """Refuse what MMDetection fails at without naming it, leaves out silently or takes wrongly."""

    def refusal(what: str, why: str) -> ConfigError:
        return ConfigError(f"{where}: {what} of {ann_file!r} {why}")

    images, annotations = content["images"], content.get("annotations") or []
    for image in images:
        if not {"id", "width", "height"} <= set(image):
            raise refusal("an image", f"lacks 'id', 'width' or 'height': {image}")
    files = {image["id"]: image.get("file_name") for image in images}
    if len(files) < len(images):
        raise refusal(f"{len(images) - len(files)} of {len(images)} images", "have another's id")
    # Of these, COCO's evaluation alone reads iscrowd without asking.
    needed = {"id", "image_id", "bbox", "area", "category_id", *["iscrowd"] * to_measure}
    for annotation in annotations:
        lacks, box = needed - set(annotation), annotation.get("bbox")
        if lacks:
            wrong = f"lacks {', '.join(map(repr, sorted(lacks)))}"
            wrong += ": write 0, or 1 for a crowd" if lacks == {"iscrowd"} else ""
        elif len(box) != 4 or not all(isinstance(v, (int, float)) and isfinite(v) for v in box):
            wrong = f"has no box of four numbers: {box}"
        elif not isinstance(annotation["area"], (int, float)):
            wrong = f"has no number for 'area': {annotation['area']!r}"
        else:
            continue
        name = files.get(annotation.get("image_id"))
        raise refusal(f"annotation {annotation.get('id')!r}", f"(image {name!r}) {wrong}")
    repeated = len(annotations) - len({annotation["id"] for annotation in annotations})
    if repeated:
        raise refusal(f"{repeated} of {len(annotations)} annotations", "have another's id")
    categories = [category.get("id") for category in content.get("categories") or []]
    listed = set(categories)  # COCO has 860,000 annotations
    lost = [a["category_id"] for a in annotations if a["category_id"] not in listed]
    if lost:
        raise refusal(
            f"{len(lost)} of {len(annotations)} annotations",
            f"have a category_id that 'categories' does not list, such as {lost[0]!r}; it lists "
            f"{shorten(list(map(repr, categories)))}. Do ids start at 0 here and at 1 there?",
        )
    if annotations and not any(annotation["image_id"] in files for annotation in annotations):
        raise refusal(
            "every annotation",
            "has an image_id that 'images' does not list, such as "
            f"{annotations[0]['image_id']!r}; it lists {shorten(list(map(repr, files)), 3)}. Are "
            "ids numbers here and texts there?",
        )


def _evaluators(cfg: Config, loader: str) -> list[dict]:
    """The evaluators' configs beside a loader."""
    found = cfg.get(loader.replace("dataloader", "evaluator")) or []
    found = found if isinstance(found, (list, tuple)) else [found]
    return [evaluator for evaluator in found if isinstance(evaluator, dict)]


def _check_evaluators(cfg: Config, loader: str) -> None:
    """Refuse evaluators that compare a loader's detections with other images' boxes."""
    datasets = list(_coco_datasets((cfg.get(loader) or {}).get("dataset")))
    for evaluator in _evaluators(cfg, loader) if datasets else ():
        path = evaluator.get("ann_file")
        if not path or "://" in str(path):
            continue
        comparable = len(datasets) == 1 and not _is_remote(datasets[0])
        shown = _ann_file(datasets[0])
        if comparable and os.path.exists(path) and os.path.samefile(path, shown):
            continue  # that file has been read
        where = f"{loader.replace('dataloader', 'evaluator')}.ann_file"
        images = _images(_read_coco(Path(path), where))
        if comparable and images != _images(_read_coco(shown, f"{loader}.dataset")):
            raise ConfigError(
                f"{where}: {str(path)!r} lists other images than {str(shown)!r}, which {loader} "
                "reads: the AP would compare images with the boxes of others"
            )


def _images(content: dict) -> set[tuple]:
    return {(image.get("id"), image.get("file_name")) for image in content["images"]}


def _check_classes(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Refuse loaders of different classes, and a head that scores another number of them."""
    found: dict[tuple[str, ...], str] = {}
    for name in loaders:
        for dataset in _coco_datasets((cfg.get(name) or {}).get("dataset")):
            found.setdefault(_classes_of(dataset), f"{name}.dataset")
    if not found:
        return
    (classes, where), *others = found.items()
    for other, there in others:
        raise ConfigError(
            f"{where} has the classes {brief(classes)} and {there} {brief(other)}: a label is a "
            "place in this order, so all need the same (metainfo=dict(classes=...))"
        )
    if cfg.get("model") is None:
        return
    model = model_config(cfg)
    head = (model.get("roi_head") or model).get("bbox_head")
    head = head[0] if isinstance(head, (list, tuple)) else head
    scored = head.get("num_classes") if isinstance(head, dict) else None
    if scored not in (None, len(classes)):
        raise ConfigError(
            f"bbox_head.num_classes is {scored}, but {where} has {len(classes)} classes "
            f"{brief(classes)}: set it to {len(classes)}"
        )


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
