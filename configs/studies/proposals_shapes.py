# Distilling what the encoders propose, beside or instead of points: a tiny DINO, generated images.
title = "The encoders' proposals: DINO on generated images"
seeds = [0, 1, 2, 3, 4]
data = dict(train=600, val=150, size=(128, 96))
options = {
    "train_cfg.max_epochs": 16,
    "train_cfg.val_interval": 4,
    "param_scheduler.1.milestones": [12],
}

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

_own_content = {"model.student_content": "blank", "model.blank_content": "nearest"}


def _distilled(title, **points):
    return dict(
        title=title,
        config="configs/demo/kd-detr_dino.py",
        teacher="dino",
        baseline="alone",
        options={
            **_own_content,
            **{f"model.points.{name}": value for name, value in points.items()},
        },
    )


runs = dict(
    alone=dict(title="alone", config="configs/demo/dino_alone.py"),
    proposals=_distilled("proposals", num_general=0, specific=False, proposals=True),
    specific_proposals=_distilled("specific points and proposals", num_general=0, proposals=True),
    both=_distilled("general and specific points"),
    both_proposals=_distilled("general and specific points and proposals", proposals=True),
)
