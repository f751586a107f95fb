# General and specific points with the project's default loss, for 3,000 iterations.
title = "Points to the plateau: DINO on generated images"
seeds = [0, 1, 2, 3, 4]
data = dict(train=600, val=150, size=(128, 96))
options = {
    "train_cfg.max_epochs": 40,
    "train_cfg.val_interval": 4,
    "param_scheduler.1.milestones": [32],
}

teachers = dict(dino=dict(config="configs/demo/dino_teacher.py"))
_early = "configs/tiny/kd-detr_dino_early.py"


def _distilled(title, config="configs/demo/kd-detr_dino.py", **points):
    return dict(
        title=title,
        config=config,
        options={
            "model.points.num_general": 60,
            "model.points.specific": True,
            "model.points.proposals": False,
            **{f"model.points.{name}": value for name, value in points.items()},
            "model.distill_loss.cls_weight": 1.0,
            "model.distill_loss.l1_weight": 5.0,
            "model.distill_loss.giou_weight": 2.0,
            **({"custom_hooks.0.off": 16} if config == _early else {}),
        },
        teacher="dino",
        baseline="alone",
        same_time=["alone", "alone_longer"],
    )


_longer = {"train_cfg.max_epochs": 80, "param_scheduler.1.milestones": [64]}

_points_longer = _distilled("general and specific points, twice as long")
_points_longer["options"].update(_longer)
_points_longer.update(baseline="alone_longer", same_time=["alone_longer"])

runs = dict(
    alone=dict(title="alone", config="configs/demo/dino_alone.py"),
    # As long as points to the end.
    alone_longer=dict(
        title="alone, twice as long",
        config="configs/demo/dino_alone.py",
        options=_longer,
    ),
    points=_distilled("general and specific points"),
    # Does the gain last where the student alone is nearer to its plateau?
    points_longer=_points_longer,
    points_early=_distilled("general and specific points for 16 epochs, then alone", _early),
    proposals_early=_distilled(
        "proposals for 16 epochs, then alone",
        _early,
        num_general=0,
        specific=False,
        proposals=True,
    ),
)
