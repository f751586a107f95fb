"""Pascal VOC's XML to COCO format: python tools/voc_to_coco.py VOC OUT.

Reads the lists VOC/ImageSets/Main/train.txt and val.txt with what they name in VOC/Annotations and
VOC/JPEGImages, and writes OUT/annotations/instances_{train,val}.json and OUT/images/{train,val}.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kd_detr_mmdet.utils.cli import one_line_errors
from kd_detr_mmdet.utils.errors import ConfigError

SPLITS = ("train", "val")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voc", type=Path, help="folder with Annotations, ImageSets and JPEGImages")
    parser.add_argument("out", type=Path, help="folder to write; must be new or empty")
    return parser.parse_args()


def read(path: Path, name: str) -> tuple[dict, list[dict]]:
    """An image and its objects, as COCO has them but for ids; the class by ``name``.

    ``xmin`` to ``ymax`` are taken as a box's edges in pixels, as annotation tools write them.

    Raises:
        ConfigError: If the file is not there, no XML, or lacks something.
    """
    try:
        root = ElementTree.parse(path).getroot()
        image = dict(
            file_name=f"{name}.jpg",
            width=int(root.find("size/width").text),
            height=int(root.find("size/height").text),
        )
        objects = []
        for found in root.iter("object"):
            left, top, right, bottom = (
                float(found.find(f"bndbox/{edge}").text)
                for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            hard = found.findtext("difficult", "0").strip() == "1"  # neither trained nor counted
            objects.append(
                dict(
                    name=found.find("name").text.strip(),
                    bbox=[left, top, right - left, bottom - top],
                    iscrowd=int(hard),
                )
            )
    except (OSError, ElementTree.ParseError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as Pascal VOC's XML: {error}") from error
    return image, objects


def convert(voc: Path, out: Path) -> list[str]:
    """Write the COCO data set; ids go on from the first split to the second.

    Returns:
        list[str]: What was written and what was left out, for the user.

    Raises:
        ConfigError: If something is missing or damaged, or ``out`` is not empty; nothing is
            written then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already: give another folder, or delete it")
    content = {}
    for split in SPLITS:
        listed = voc / "ImageSets/Main" / f"{split}.txt"
        if not listed.is_file():
            raise ConfigError(f"no file {listed}: it must list the images of '{split}', one a line")
        try:
            names = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
        except ValueError as error:
            raise ConfigError(f"{listed} cannot be read: {error}") from error
        missing = [n for n in names if not (voc / "JPEGImages" / f"{n}.jpg").is_file()]
        if missing:
            raise ConfigError(
                f"no image {voc / 'JPEGImages' / missing[0]}.jpg, which {listed} lists"
            )
        content[split] = [read(voc / "Annotations" / f"{name}.xml", name) for name in names]
    classes = sorted({o["name"] for split in content.values() for _, found in split for o in found})
    ids = {name: number for number, name in enumerate(classes, 1)}
    categories = [dict(id=number, name=name) for name, number in ids.items()]
    image_id, box_id, told = 0, 0, []
    for split, found in content.items():
        images, annotations = [], []
        (out / "images" / split).mkdir(parents=True)
        for image, objects in found:
            image_id += 1
            images.append(dict(id=image_id, **image))
            shutil.copy(voc / "JPEGImages" / image["file_name"], out / "images" / split)
            for one in objects:
                if min(one["bbox"][2:]) <= 0:
                    told.append(f"left out: an empty {one['name']} in {image['file_name']}")
                    continue
                box_id += 1
                annotations.append(
                    dict(
                        id=box_id,
                        image_id=image_id,
                        category_id=ids[one["name"]],
                        bbox=one["bbox"],
                        area=one["bbox"][2] * one["bbox"][3],
                        iscrowd=one["iscrowd"],
                    )
                )
        path = out / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )
        told.append(f"{split}: {len(images)} images, {len(annotations)} boxes")
    return [*told, f"classes = {tuple(classes)!r}"]


def main() -> None:
    args = parse_args()
    for line in convert(args.voc, args.out):
        print(line)


if __name__ == "__main__":
    with one_line_errors():
        main()
