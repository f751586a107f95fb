# The same on the people of COCO: the images in data/coco-mini (docs/studies/README.md).
_base_ = "./mobilenet_bccd.py"
title = "Pretrained MobileNetV2: DINO on people of coco-mini"

_data = "data/coco-mini/"


def _people(head, epochs, **more):
    """Options that put a config of other data to the people of coco-mini, for ``epochs``."""
    options = {
        f"model.{head}.num_classes": 1,
        "train_cfg.max_epochs": epochs,
        "train_cfg.val_interval": 1,
        "default_hooks.checkpoint.interval": 1,
        "param_scheduler.1.milestones": [int(0.8 * epochs)],
        "val_evaluator.ann_file": f"{_data}annotations/instances_val.json",
    }
    for split in ("train", "val"):
        dataset = f"{split}_dataloader.dataset"
        options[f"{dataset}.data_root"] = _data
        options[f"{dataset}.metainfo.classes"] = ("person",)
        options[f"{dataset}.ann_file"] = f"annotations/instances_{split}.json"
        options[f"{dataset}.data_prefix.img"] = f"images/{split}/"
    return options | more


_alone, _distilled = "bbox_head", "student.bbox_head"
_teacher = "configs/mobilenet/dino_teacher_one_class.py"
_by = {"model.teacher.config": _teacher}
_specific = {"model.points.num_general": 0}
teachers = dict(dino=dict(config=_teacher, options=_people(_alone, 6)))
runs = dict(
    alone=dict(options=_people(_alone, 4)),
    alone_longer=dict(options=_people(_alone, 8)),
    both=dict(options=_people(_distilled, 4, **_by)),
    specific=dict(options=_people(_distilled, 4, **_by, **_specific)),
)
