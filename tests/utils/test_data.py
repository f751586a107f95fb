"""check_data: data sets that would stop a run are told before it starts."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes
from kd_detr_mmdet.utils.data import check_data
from kd_detr_mmdet.utils.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    return Path(generate_shapes(tmp_path / "shapes", dict(train=3, val=2), image_size=(64, 48)))


def coco(root, split="train", **more):
    return dict(
        type="CocoDataset",
        data_root=str(root),
        ann_file=f"annotations/instances_{split}.json",
        data_prefix=dict(img=f"images/{split}/"),
        metainfo=dict(classes=SHAPE_CLASSES),
        **more,
    )


def config(train=None, val=None, test=None):
    loaders = dict(train_dataloader=train, val_dataloader=val, test_dataloader=test)
    return Config({k: None if v is None else dict(dataset=v) for k, v in loaders.items()})


def annotations(root, split="train"):
    return root / "annotations" / f"instances_{split}.json"


def edit(root, **changes):
    """Change the annotation file; None takes an entry out."""
    content = {**json.loads(annotations(root).read_text()), **changes}
    content = {k: v for k, v in content.items() if v is not None}
    annotations(root).write_text(json.dumps(content))


def refused(dataset, where="train_dataloader.dataset"):
    """What the user is told: one line that starts with the option's name."""
    with pytest.raises(ConfigError) as error:
        check_data(config(dataset))
    message = str(error.value)
    assert message.startswith(f"{where}: ")
    assert "\n" not in message
    return message


def test_good_data_passes(root):
    val = coco(root, "val", test_mode=True)
    check_data(config(coco(root), val, val))
    check_data(Config(dict(model=dict(type="DINO"))))  # no data at all
    check_data(config())


def test_missing_annotation_file(root):
    annotations(root).unlink()
    message = refused(coco(root))
    assert "no annotation file" in message
    assert str(annotations(root)) in message
    assert "check data_root" in message


@pytest.mark.parametrize("content", [b"", b"{'images': []}", b'{"images": [', b"\xff\xfe\x00"])
def test_annotation_file_that_is_not_json(root, content):
    annotations(root).write_bytes(content)
    message = refused(coco(root))
    assert "is not valid JSON" in message
    assert str(annotations(root)) in message


@pytest.mark.parametrize("images", [None, []])
def test_annotation_file_without_images(root, images):
    edit(root, images=images)
    assert "lists no images" in refused(coco(root))


def test_annotation_file_of_another_format(root):
    annotations(root).write_text("[1, 2, 3]")
    message = refused(coco(root))
    assert "lists no images" in message
    assert "COCO format" in message


def test_class_that_the_file_does_not_know(root):
    message = refused({**coco(root), "metainfo": dict(classes=("disc", "cat", "ring", "dog"))})
    assert "knows no class 'cat', 'dog'" in message
    assert "'disc', 'ring', 'square', 'triangle'" in message
    assert "metainfo=dict(classes=...)" in message


def test_one_class_may_be_a_string(root):
    check_data(config({**coco(root), "metainfo": dict(classes="disc")}))
    assert "'cat'" in refused({**coco(root), "metainfo": dict(classes="cat")})


def test_classes_may_be_fewer_than_the_files(root):
    check_data(config({**coco(root), "metainfo": dict(classes=("ring", "disc"))}))


def test_classes_of_coco_are_the_default(root):
    """The most common slip with own data: metainfo left out."""
    dataset = coco(root)
    del dataset["metainfo"]
    message = refused(dataset)
    assert "knows no class 'person', 'bicycle'" in message


def test_missing_image(root):
    (root / "images/train/000002.png").unlink()
    message = refused(coco(root))
    assert "1 of 3 images" in message
    assert str(root / "images/train/000002.png") in message
    assert "does not exist" in message
    assert "check data_prefix" in message


def test_empty_image(root):
    (root / "images/train/000003.png").write_bytes(b"")
    message = refused(coco(root))
    assert "1 of 3 images" in message
    assert "000003.png' is an empty file" in message


def test_missing_folder_of_images(root):
    message = refused({**coco(root), "data_prefix": dict(img="photos/")})
    assert "3 of 3 images" in message
    assert "photos" in message


def test_images_in_folders_of_their_own(root):
    """file_name may hold folders, as in Objects365."""
    content = json.loads(annotations(root).read_text())
    for image in content["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    edit(root, images=content["images"])
    dataset = {**coco(root), "data_prefix": dict(img="images/")}
    check_data(config(dataset))
    (root / "images/train/000001.png").unlink()
    assert "train/000001.png" in refused(dataset)


def wrapped(dataset, kind):
    return {
        "repeat": dict(type="RepeatDataset", times=2, dataset=dataset),
        "balance": dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=dataset),
        "mosaic": dict(type="MultiImageMixDataset", dataset=dataset, pipeline=[]),
        "concat": dict(type="ConcatDataset", datasets=[dict(type="VOCDataset"), dataset]),
        "both": dict(
            type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[dataset])
        ),
    }[kind]


@pytest.mark.parametrize("kind", ["repeat", "balance", "mosaic", "concat", "both"])
def test_wrapped_data_sets_are_checked(root, kind):
    check_data(config(wrapped(coco(root), kind)))
    annotations(root).unlink()
    assert "no annotation file" in refused(wrapped(coco(root), kind))


def test_subclasses_of_coco_are_checked(root):
    annotations(root).unlink()
    assert "no annotation file" in refused({**coco(root), "type": "LVISV1Dataset"})


@pytest.mark.parametrize("kind", ["VOCDataset", "NoSuchDataset"])
def test_other_formats_are_left_alone(root, kind):
    annotations(root).unlink()
    check_data(config({**coco(root), "type": kind}))


@pytest.mark.parametrize(
    "remote",
    [
        dict(data_root="s3://bucket/shapes/"),
        dict(ann_file="https://example.org/train.json"),
        dict(data_prefix=dict(img="petrel://bucket/train/")),
    ],
)
def test_remote_data_is_left_alone(root, remote):
    annotations(root).unlink()
    check_data(config({**coco(root), **remote}))


def test_absolute_paths_need_no_root(root):
    dataset = coco("")
    del dataset["data_root"]
    dataset.update(ann_file=str(annotations(root)), data_prefix=dict(img=f"{root}/images/train"))
    check_data(config(dataset))
    (root / "images/train/000001.png").unlink()
    assert "000001.png" in refused(dataset)


def test_loaders_that_are_not_used_are_not_checked(root):
    annotations(root, "val").unlink()
    cfg = config(coco(root), coco(root, "val"))
    check_data(cfg, ("train_dataloader", "test_dataloader"))
    with pytest.raises(ConfigError, match="^val_dataloader.dataset: no annotation file"):
        check_data(cfg)


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(data_prefix=dict(img="images/val/")), "1 of 3 images"),
        (dict(metainfo=dict(classes=("cat",))), "knows no class 'cat'"),
    ],
)
def test_every_data_set_of_one_annotation_file_is_checked(root, change, told):
    """As where validation runs on the training annotations, but with another slip."""
    with pytest.raises(ConfigError, match=told):
        check_data(config(coco(root), {**coco(root), **change}))


def test_image_without_a_file_name(root):
    edit(root, images=[dict(id=1, width=64, height=48)])
    assert "file_name" in refused(coco(root))
