# From a tiny DINO to a tiny Faster R-CNN: at whose boxes, and how sigmoids teach a softmax.
title = "Faster R-CNN taught by a DINO, on generated images"
seeds = [0, 1, 2, 3, 4]
data = dict(train=600, val=150, size=(128, 96))
options = {"train_cfg.val_interval": 2}

teachers = dict(
    dino=dict(
        config="configs/demo/dino_teacher.py",
        options={
            "train_cfg.max_epochs": 40,
            "train_cfg.val_interval": 4,
            "param_scheduler.1.milestones": [32],
        },
    )
)

_distilled = dict(
    config="configs/tiny/kd-detr_dino-to-faster_rcnn.py",
    teacher="dino",
    baseline="alone",
    same_time=["alone", "alone_2x"],
)


def _generated_boxes(title, **points):
    return dict(
        _distilled,
        title=title,
        options={
            "model.points._delete_": True,
            "model.points.type": "DistillPointGenerator",
            **{f"model.points.{name}": value for name, value in points.items()},
        },
    )


runs = dict(
    alone=dict(title="alone", config="configs/tiny/faster_rcnn_alone.py"),
    alone_2x=dict(
        title="alone, twice as long",
        config="configs/tiny/faster_rcnn_alone.py",
        options={"train_cfg.max_epochs": 16, "param_scheduler.1.milestones": [12]},
    ),
    sampled=dict(
        _distilled,
        title="at the RoIs that the student's loss samples, posterior",
        options={"model.distill_loss.class_bridge": "posterior"},
    ),
    sampled_boxes=dict(
        _distilled,
        title="sampled RoIs, boxes only",
        options={"model.distill_loss.cls_weight": 0.0},
    ),
    sampled_early=dict(
        _distilled,
        title="at the RoIs that the student's loss samples, for three epochs, then alone",
        config="configs/tiny/kd-detr_dino-to-faster_rcnn_early.py",
    ),
    proposals=dict(
        _distilled,
        title="at the student's proposals",
        options={"model.points.boxes": "proposals"},
    ),
    proposals_boxes=dict(
        _distilled,
        title="at the student's proposals, boxes only",
        options={"model.points.boxes": "proposals", "model.distill_loss.cls_weight": 0.0},
    ),
    anchors=dict(
        _distilled, title="at the student's anchors", options={"model.points.boxes": "anchors"}
    ),
    general=_generated_boxes("at random boxes", num_general=60, specific=False),
    specific=_generated_boxes("at the teacher's queries", num_general=0),
    both=_generated_boxes("at the teacher's queries and random boxes", num_general=60),
    sampled_binary=dict(
        _distilled,
        title="sampled RoIs, a yes or no for each class",
        options={"model.distill_loss.class_bridge": "binary"},
    ),
    sampled_foreground=dict(
        _distilled,
        title="sampled RoIs, which class, without the background",
        options={"model.distill_loss.class_bridge": "foreground"},
    ),
    sampled_nearest=dict(
        _distilled,
        title="sampled RoIs, the teacher's nearest content instead of none",
        options={"model.blank_content": "nearest"},
    ),
)
