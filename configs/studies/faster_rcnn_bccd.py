# The tiny Faster R-CNN and its distillation on real images: BCCD in data/bccd instead of shapes.
title = "Faster R-CNN taught by a DINO, on BCCD"
seeds = [0, 1, 2, 3, 4]
options = {"train_cfg.val_interval": 4}

teachers = dict(
    dino=dict(
        config="configs/custom/dino_teacher.py",
        options={"train_cfg.max_epochs": 60, "param_scheduler.1.milestones": [48]},
    )
)


def _bccd(student, epochs=24):
    """Options that put a config of the generated images to BCCD, for ``epochs`` epochs."""
    options = {
        f"{student}.roi_head.bbox_head.num_classes": 3,
        "train_cfg.max_epochs": epochs,
        "param_scheduler.1.milestones": [int(0.8 * epochs)],
        "val_evaluator.ann_file": "data/bccd/annotations/instances_val.json",
    }
    for split in ("train", "val"):
        dataset = f"{split}_dataloader.dataset"
        options[f"{dataset}.data_root"] = "data/bccd/"
        options[f"{dataset}.metainfo.classes"] = ("Platelets", "RBC", "WBC")
        options[f"{dataset}.ann_file"] = f"annotations/instances_{split}.json"
        options[f"{dataset}.data_prefix.img"] = f"images/{split}/"
    return options


def _alone(title, epochs):
    config = "configs/tiny/faster_rcnn_alone.py"
    return dict(title=title, config=config, options=_bccd("model", epochs))


def _distilled(title, early="", **options):
    return dict(
        title=title,
        config=f"configs/tiny/kd-detr_dino-to-faster_rcnn{early}.py",
        options={
            **_bccd("model.student"),
            "model.teacher.config": "configs/custom/dino_teacher.py",
            **({"custom_hooks.0.off": 8} if early else {}),
            **{f"model.{name.replace('__', '.')}": value for name, value in options.items()},
        },
        teacher="dino",
        baseline="alone",
        same_time=["alone", "alone_2x"],
    )


def _generated_boxes(title, **points):
    return _distilled(
        title,
        points___delete_=True,
        points__type="DistillPointGenerator",
        **{f"points__{name}": value for name, value in points.items()},
    )


runs = dict(
    alone=_alone("alone", 24),
    alone_2x=_alone("alone, twice as long", 48),
    sampled=_distilled("at the RoIs that the student's loss samples (defaults)"),
    sampled_boxes=_distilled("sampled RoIs, boxes only", distill_loss__cls_weight=0.0),
    sampled_early=_distilled("sampled RoIs, for eight epochs, then alone", early="_early"),
    proposals=_distilled("at the student's proposals", points__boxes="proposals"),
    proposals_boxes=_distilled(
        "at the student's proposals, boxes only",
        points__boxes="proposals",
        distill_loss__cls_weight=0.0,
    ),
    general=_generated_boxes("at random boxes", num_general=60, specific=False),
    specific=_generated_boxes("at the teacher's queries", num_general=0),
    both=_generated_boxes("at the teacher's queries and random boxes", num_general=60),
    anchors=_distilled("at the student's anchors", points__boxes="anchors"),
    sampled_posterior=_distilled("sampled RoIs, posterior", distill_loss__class_bridge="posterior"),
    sampled_binary=_distilled(
        "sampled RoIs, a yes or no for each class", distill_loss__class_bridge="binary"
    ),
    sampled_nearest=_distilled(
        "sampled RoIs, the teacher's nearest content instead of none", blank_content="nearest"
    ),
)
