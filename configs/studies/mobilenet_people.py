# The same on the people of COCO: the images in data/coco-mini (docs/studies/README.md).
_base_ = ["./mobilenet_bccd.py", "../_base_/people.py"]
title = "Pretrained MobileNetV2: DINO on people of coco-mini"
options = {"train_cfg.val_interval": 1, "default_hooks.checkpoint.interval": 1}


def _people(head, epochs, **more):
    """Options of a model for one class, trained for ``epochs``, and more."""
    return {
        f"model.{head}.num_classes": 1,
        "train_cfg.max_epochs": epochs,
        "param_scheduler.1.milestones": [int(0.8 * epochs)],
        **more,
    }


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
