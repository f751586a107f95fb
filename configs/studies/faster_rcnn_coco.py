# A tiny Faster R-CNN and its distillation on people: the images of COCO in data/coco-mini, whose
# teacher starts from a pretrained MobileNetV2 in data/mobilenet_v2.pth (docs/studies/README.md).
title = "Faster R-CNN taught by a DINO, on people of coco-mini"
seeds = [0, 1, 2, 3, 4]
options = {"train_cfg.val_interval": 4}

_data = "data/coco-mini/"


def _people(model, epochs):
    """Options that put a config of other data to the people of coco-mini, for ``epochs``."""
    options = {
        f"{model}.num_classes": 1,
        "train_cfg.max_epochs": epochs,
        "param_scheduler.1.milestones": [int(0.8 * epochs)],
        "train_dataloader.dataset.pipeline.3.direction": "horizontal",
        "val_evaluator.ann_file": f"{_data}annotations/instances_val.json",
    }
    for split in ("train", "val"):
        dataset = f"{split}_dataloader.dataset"
        options[f"{dataset}.data_root"] = _data
        options[f"{dataset}.metainfo.classes"] = ("person",)
        options[f"{dataset}.ann_file"] = f"annotations/instances_{split}.json"
        options[f"{dataset}.data_prefix.img"] = f"images/{split}/"
    return options


_teacher = "configs/tiny/dino_mobilenet_teacher.py"
teachers = dict(dino=dict(config=_teacher, options=_people("model.bbox_head", 24)))


def _alone(title, epochs):
    config = "configs/tiny/faster_rcnn_alone.py"
    return dict(title=title, config=config, options=_people("model.roi_head.bbox_head", epochs))


runs = dict(
    alone=_alone("alone", 8),
    alone_2x=_alone("alone, twice as long", 16),
    proposals_boxes=dict(
        title="its proposals, boxes only",
        config="configs/tiny/kd-detr_dino-to-faster_rcnn.py",
        options={
            **_people("model.student.roi_head.bbox_head", 8),
            "model.teacher.config": _teacher,
            "model.points.boxes": "proposals",
            "model.distill_loss.cls_weight": 0.0,
        },
        teacher="dino",
        baseline="alone",
        same_time=["alone", "alone_2x"],
    ),
)
