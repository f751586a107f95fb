"""check_data: data sets that would stop a run are told before it starts."""

import json
import re
from pathlib import Path

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config

from kd_detr_mmdet.datasets import SHAPE_CLASSES, generate_shapes
from kd_detr_mmdet.utils.data import check_data, count_boxes, read_images
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


def config(train=None, val=None, test=None, **more):
    loaders = dict(train_dataloader=train, val_dataloader=val, test_dataloader=test)
    loaders = {k: None if v is None else dict(dataset=v) for k, v in loaders.items()}
    return Config({**loaders, **more})


def annotations(root, split="train"):
    return root / "annotations" / f"instances_{split}.json"


def edit(root, **changes):
    """Change the annotation file; None takes an entry out."""
    content = {**json.loads(annotations(root).read_text()), **changes}
    content = {k: v for k, v in content.items() if v is not None}
    annotations(root).write_text(json.dumps(content))


def told(cfg):
    """What the user is told: one line."""
    with pytest.raises(ConfigError) as error:
        check_data(cfg)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(dataset):
    """The same of training data: it starts with the option's name."""
    message = told(config(dataset))
    assert message.startswith("train_dataloader.dataset: ")
    return message


def evaluator(root, split="val"):
    return dict(type="CocoMetric", ann_file=str(annotations(root, split)))


def edit_annotations(root, split="train", **changes):
    """Change every annotation: to a value, by a function of the old one, or by None take it out."""
    path = annotations(root, split)
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        for key, change in changes.items():
            old = annotation.pop(key)
            if change is not None:
                annotation[key] = change(old) if callable(change) else change
    path.write_text(json.dumps(content))


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


def test_one_class_without_a_comma(root):
    """classes = ("disc") is a text of four letters."""
    edit_annotations(root, category_id=1)
    check_data(config({**coco(root), "metainfo": dict(classes=("disc",))}))
    assert "write ('disc',)" in refused({**coco(root), "metainfo": dict(classes="disc")})
    assert "knows no class 'cat'" in refused({**coco(root), "metainfo": dict(classes="cat")})


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


@pytest.mark.parametrize("kind", ["DeepFashionDataset", "LVISV1Dataset"])
def test_subclasses_of_coco_are_checked(root, kind):
    annotations(root).unlink()
    assert "no annotation file" in refused({**coco(root), "type": kind})


def test_images_that_are_found_by_other_means_than_their_name(root):
    """LVIS has their URLs alone."""
    content = json.loads(annotations(root).read_text())
    edit(root, images=[{k: i[k] for k in ("id", "width", "height")} for i in content["images"]])
    cfg = config({**coco(root), "type": "LVISV1Dataset"})
    check_data(cfg)
    assert list(read_images(cfg)) == []
    assert "file_name" in refused({**coco(root), "type": "DeepFashionDataset"})


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


@pytest.mark.parametrize(
    "changes, why",
    [
        (dict(category_id=0), "have a category_id .* such as 0; it lists 1, 2, 3, 4"),
        (dict(image_id=str), r"has an image_id .* such as '\d'; it lists 1, 2, 3"),
        (dict(image_id=lambda i: i + 1000), r"such as 100\d; it lists 1, 2, 3"),
        (dict(id=7), r"annotations .* have another's id"),
        (dict(id=None), "lacks 'id'"),
        (dict(image_id=None), "lacks 'image_id'"),
        (dict(bbox=lambda box: [v / 1000 for v in box]), "has no box of the classes that counts"),
        (dict(area=0), "has no box of the classes that counts"),
        (dict(area="0"), "has no number for 'area': '0'"),
        (dict(iscrowd=1), "has no box of the classes that counts"),
    ],
)
def test_annotations_that_would_teach_nothing_or_another_class(root, changes, why):
    edit_annotations(root, **changes)
    assert re.search(why, refused(coco(root)))


def test_one_of_several_data_sets_may_be_of_images_without_objects(root):
    empty = root / "annotations" / "empty.json"
    content = {**json.loads(annotations(root).read_text()), "annotations": []}
    empty.write_text(json.dumps(content))
    negatives = {**coco(root), "ann_file": str(empty)}
    check_data(config(dict(type="ConcatDataset", datasets=[negatives, coco(root)])))
    assert "empty.json" in refused(dict(type="ConcatDataset", datasets=[negatives] * 2))


def test_no_annotations(root):
    edit(root, annotations=[])
    assert "has no box of the classes that counts" in refused(coco(root))
    edit(root, annotations=None)
    assert "has no box of the classes that counts" in refused(coco(root))


def test_images_that_share_an_id(root):
    content = json.loads(annotations(root).read_text())
    edit(root, images=[{**image, "id": 1} for image in content["images"]])
    assert "2 of 3 images" in refused(coco(root))


def test_some_of_the_annotations_may_be_of_other_images(root):
    """As where a file keeps all annotations, but some images only."""
    content = json.loads(annotations(root).read_text())
    edit(root, images=content["images"][2:])
    check_data(config(coco(root)))


def test_what_evaluation_alone_needs(root):
    for split in ("train", "val"):
        edit_annotations(root, split, iscrowd=None)
    check_data(config(coco(root)))
    val = coco(root, "val", test_mode=True)
    check_data(config(val=val, val_evaluator=dict(type="VOCMetric")))
    message = told(config(val=val, val_evaluator=[evaluator(root)]))
    assert message.startswith("val_dataloader.dataset: ")
    assert "lacks 'iscrowd': write 0, or 1 for a crowd" in message


def test_images_to_predict_on_need_no_boxes(root):
    edit_annotations(root, "val", iscrowd=None, area=0)
    val = coco(root, "val", test_mode=True)
    judge = evaluator(root)
    assert "lacks 'iscrowd'" in told(config(test=val, test_evaluator=judge))
    check_data(config(test=val, test_evaluator=dict(judge, format_only=True)))


def test_boxes_to_measure_by(root):
    edit_annotations(root, "val", area=0)
    val = coco(root, "val", test_mode=True)
    message = told(config(val=val, val_evaluator=evaluator(root)))
    assert message.startswith("val_dataloader.dataset: ")
    assert "has no box of the classes that counts" in message


def test_an_evaluator_reads_the_loaders_images(root):
    val = coco(root, "val", test_mode=True)
    check_data(config(val=val, val_evaluator=evaluator(root)))
    check_data(config(val=val, val_evaluator=[evaluator(root), dict(type="VOCMetric")]))
    # Other boxes of the same images may be meant.
    copy = root / "annotations" / "relabelled.json"
    copy.write_bytes(annotations(root, "val").read_bytes())
    check_data(config(val=val, val_evaluator=dict(type="CocoMetric", ann_file=str(copy))))
    content = json.loads(copy.read_text())
    for image in content["images"]:  # the ids of another split's images
        image["file_name"] = f"other_{image['file_name']}"
    copy.write_text(json.dumps(content))
    message = told(config(val=val, val_evaluator=dict(type="CocoMetric", ann_file=str(copy))))
    assert "lists other images than" in message
    message = told(config(val=val, val_evaluator=evaluator(root, "train")))
    assert message.startswith("val_evaluator.ann_file: ")
    assert "lists other images than" in message
    assert "instances_val.json', which val_dataloader reads" in message
    message = told(config(val=val, val_evaluator=[dict(type="CocoMetric", ann_file="no.json")]))
    assert message.startswith("val_evaluator.ann_file: no annotation file 'no.json'")


def test_loaders_have_the_same_classes_in_one_order(root):
    val = {**coco(root, "val"), "metainfo": dict(classes=SHAPE_CLASSES[::-1])}
    message = told(config(coco(root), val))
    assert message.startswith(f"train_dataloader.dataset has the classes ({SHAPE_CLASSES[0]}")
    assert f"val_dataloader.dataset ({SHAPE_CLASSES[-1]}" in message
    check_data(config(coco(root), val), ("train_dataloader",))


@pytest.mark.parametrize("kind", ["detr", "distilled", "two stages", "cascade"])
def test_a_head_scores_the_data_sets_classes(root, kind):
    def model(classes):
        head = dict(bbox_head=dict(type="Head", num_classes=classes))
        return {
            "detr": dict(type="DINO", **head),
            "distilled": dict(type="KDDETR", student=dict(type="DINO", **head)),
            "two stages": dict(type="FasterRCNN", roi_head=head),
            "cascade": dict(type="CascadeRCNN", roi_head=dict(bbox_head=[head["bbox_head"]] * 3)),
        }[kind]

    check_data(config(coco(root), model=model(4)))
    message = told(config(coco(root), model=model(80)))
    assert "bbox_head.num_classes is 80, but train_dataloader.dataset has 4 classes" in message
    assert message.endswith("set it to 4")


def test_a_model_without_a_head_is_left_alone(root):
    check_data(config(coco(root), model=dict(type="RPN", rpn_head=dict(type="RPNHead"))))


def test_boxes_are_counted_as_mmdetection_takes_them(root):
    """A golden list, and what MMDetection's own data set makes of it."""
    image = dict(id=1, file_name="000001.png", width=64, height=48)
    boxes = [
        ([1, 1, 9, 9], {}),
        ([60, 40, 5, 9], {}),  # beyond, by no more than a pixel
        ([60, 40, 9, 9], {}),  # beyond
        ([-5, 1, 9, 9], {}),  # beyond
        ([64, 1, 9, 9], {}),  # outside
        ([1, 1, 0.5, 9], {}),  # below a pixel
        ([1, 1, 9, 9], dict(area=0)),
        ([1, 1, 9, 9], dict(iscrowd=1)),
        ([1, 1, 9, 9], dict(category_id=4)),  # of a class that is not asked for
        ([1, 1, 9, 9], dict(image_id=2)),  # of an image that is not listed
    ]
    usual = dict(image_id=1, category_id=1, area=9, iscrowd=0)
    edit(
        root,
        images=[image],
        annotations=[dict(usual, id=i, bbox=b, **more) for i, (b, more) in enumerate(boxes)],
    )
    dataset = {**coco(root), "metainfo": dict(classes=SHAPE_CLASSES[:2])}
    cfg = config(wrapped(dataset, "repeat"))
    check_data(cfg)
    (line,) = count_boxes(cfg)
    first, second = SHAPE_CLASSES[:2]
    assert line.startswith(
        f"train_dataloader: 1 images, 4 boxes: {first} 4, {second} 0; 6 annotations left out ("
    )
    assert "; 2 boxes reach beyond their image: are all [x, y, width, height]" in line
    (sample,) = DATASETS.build(dict(dataset, pipeline=[]))
    assert sum(not instance["ignore_flag"] for instance in sample["instances"]) == 4


def test_counts_of_good_data_are_short(root):
    lines = list(count_boxes(config(coco(root), coco(root, "val"))))
    assert len(lines) == 2
    assert all(re.fullmatch(r"\w+: \d images, \d+ boxes: [\w ,]+", line) for line in lines)


def test_image_without_a_file_name(root):
    edit(root, images=[dict(id=1, width=64, height=48)])
    assert "file_name" in refused(coco(root))
