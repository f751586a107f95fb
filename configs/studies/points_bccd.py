# Distillation on real images: BCCD blood cells in data/bccd, in COCO format.
title = "DINO on BCCD"
seeds = [0, 1, 2, 3, 4]
options = {"train_cfg.val_interval": 4}

teachers = dict(
    dino=dict(
        config="configs/custom/dino_teacher.py",
        options={
            "train_cfg.max_epochs": 60,
            "param_scheduler.1.milestones": [48],
        },
    )
)

_compared = dict(
    config="configs/custom/kd-detr_dino.py",
    teacher="dino",
    baseline="alone",
    same_time=["alone", "alone_same_time", "alone_2x"],
)
_proposals = {
    "model.points.num_general": 0,
    "model.points.specific": False,
    "model.points.proposals": True,
    "model.distill_loss.cls_weight": 8.0,
    "model.distill_loss.l1_weight": 20.0,
    "model.distill_loss.giou_weight": 8.0,
}

runs = dict(
    alone=dict(title="alone", config="configs/custom/dino_alone.py"),
    alone_2x=dict(
        title="alone, twice as long",
        config="configs/custom/dino_alone.py",
        options={"train_cfg.max_epochs": 48, "param_scheduler.1.milestones": [38]},
    ),
    alone_same_time=dict(
        title="alone, for as long as 'proposals for ten epochs' takes",
        config="configs/custom/dino_alone.py",
        options={"train_cfg.max_epochs": 28, "param_scheduler.1.milestones": [22]},
    ),
    early=dict(
        _compared,
        title="proposals for ten epochs, then alone",
        config="configs/custom/kd-detr_dino_early.py",
    ),
    proposals=dict(
        _compared,
        title="proposals",
        options=_proposals,
    ),
    interval=dict(
        _compared,
        title="proposals, every other iteration",
        options={**_proposals, "model.interval": 2},
    ),
    half=dict(
        _compared,
        title="proposals, the teacher in bfloat16 with channels last",
        options={
            **_proposals,
            "model.teacher.dtype": "bfloat16",
            "model.teacher.channels_last": True,
        },
    ),
)
