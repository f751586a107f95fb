# A tiny Faster R-CNN and its distillation on people: the images of COCO in data/coco-mini, whose
# teacher starts from a pretrained MobileNetV2 in data/mobilenet_v2.pth (docs/studies/README.md).
_base_ = "../_base_/people.py"
title = "Faster R-CNN taught by a DINO, on people of coco-mini"
seeds = [0, 1, 2, 3, 4]
options = {
    "train_cfg.val_interval": 4,
    "train_dataloader.dataset.pipeline.3.direction": "horizontal",
}


def _people(model, epochs):
    """Options of a model for one class, trained for ``epochs``."""
    return {
        f"{model}.num_classes": 1,
        "train_cfg.max_epochs": epochs,
        "param_scheduler.1.milestones": [int(0.8 * epochs)],
    }


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
