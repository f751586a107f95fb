# To the plateau: a tiny DINO for 3,000 iterations and longer, on the demo's generated images.
title = "To the plateau: DINO on generated images"
seeds = [0, 1, 2, 3, 4]
data = dict(train=600, val=150, size=(128, 96))
options = {
    "train_cfg.max_epochs": 40,
    "train_cfg.val_interval": 4,
    "param_scheduler.1.milestones": [32],
}

teachers = dict(dino=dict(config="configs/demo/dino_teacher.py"))


_compared = dict(
    teacher="dino", baseline="alone", same_time=["alone", "alone_same_time", "alone_longer"]
)


def _distilled(title, weights=None, interval=1, **points):
    return dict(
        _compared,
        title=title,
        config="configs/demo/kd-detr_dino.py",
        options={
            "model.student_content": "blank",
            "model.blank_content": "nearest",
            **({} if interval == 1 else {"model.interval": interval}),
            **{f"model.points.{name}": value for name, value in points.items()},
            **{f"model.distill_loss.set_weights.{k}": v for k, v in (weights or {}).items()},
        },
    )


runs = dict(
    alone=dict(title="alone", config="configs/demo/dino_alone.py"),
    # A step with proposals takes 1.4 times a plain one, so 16 of 40 epochs with it cost 6.4 more.
    alone_same_time=dict(
        title="alone, for as long as 'proposals for 16 epochs' takes",
        config="configs/demo/dino_alone.py",
        options={"train_cfg.max_epochs": 47, "param_scheduler.1.milestones": [38]},
    ),
    # As long as the slowest of the distilled ones.
    alone_longer=dict(
        title="alone, twice as long",
        config="configs/demo/dino_alone.py",
        options={"train_cfg.max_epochs": 80, "param_scheduler.1.milestones": [64]},
    ),
    proposals=_distilled("proposals", num_general=0, specific=False, proposals=True),
    early=dict(
        _compared,
        title="proposals for 16 epochs, then alone",
        config="configs/tiny/kd-detr_dino_early.py",
        options={"custom_hooks.0.off": 16},
    ),
    interval=_distilled(
        "proposals, every other iteration",
        interval=2,
        num_general=0,
        specific=False,
        proposals=True,
    ),
    both=_distilled("general and specific points"),
    light=_distilled(
        "proposals, and specific points at a quarter",
        weights=dict(specific=0.25),
        num_general=0,
        proposals=True,
    ),
)
