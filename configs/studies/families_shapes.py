# Four families beside DINO, alone and distilled by a DINO and by a stronger model of their own.
# Deformable DETR is its one-stage form with box refinement.
title = "Families: tiny detectors on generated images"
seeds = [0, 1, 2, 3, 4]
data = dict(train=600, val=150, size=(128, 96))
# Without denoising queries and encoder proposals these need more time than DINO.
options = {
    "train_cfg.max_epochs": 16,
    "train_cfg.val_interval": 4,
    "param_scheduler.1.milestones": [12],
}

_long = {
    "train_cfg.max_epochs": 40,
    "train_cfg.val_interval": 4,
    "param_scheduler.1.milestones": [32],
}
teachers = dict(
    dino=dict(config="configs/demo/dino_teacher.py", options=_long),
    dab_teacher=dict(config="configs/tiny/dab_teacher.py", options=_long),
    deformable_teacher=dict(config="configs/tiny/deformable_teacher.py", options=_long),
    conditional_teacher=dict(config="configs/tiny/conditional_teacher.py", options=_long),
    ddq_teacher=dict(config="configs/tiny/ddq_teacher.py", options=_long),
)

_own = {"model.student_content": "blank", "model.blank_content": "nearest"}
_specific = {"model.points.num_general": 0, **_own}


def _alone(family, title):
    return dict(title=f"{title}, alone", config=f"configs/tiny/{family}_alone.py")


def _longer(family, title):
    options = {"train_cfg.max_epochs": 32, "param_scheduler.1.milestones": [24]}
    return dict(_alone(family, title), title=f"{title}, alone, twice as long", options=options)


def _distilled(family, title, teacher="dino", general=False):
    pair = f"dino-to-{family}" if teacher == "dino" else family
    by = f"{title}, by {'DINO' if teacher == 'dino' else 'its own'}"
    return dict(
        title=f"{by}, general points too" if general else by,
        config=f"configs/tiny/kd-detr_{pair}.py",
        teacher=teacher,
        baseline=family,
        same_time=[family, f"{family}_longer"],
        options=_own if general else _specific,
    )


runs = dict(
    dab=_alone("dab", "DAB-DETR"),
    dab_longer=_longer("dab", "DAB-DETR"),
    dab_dino=_distilled("dab", "DAB-DETR"),
    dab_dino_general=_distilled("dab", "DAB-DETR", general=True),
    dab_dino_general_light=dict(
        _distilled("dab", "DAB-DETR"),
        title="DAB-DETR, by DINO, general points at a fifth of their weight",
        options={**_own, "model.distill_loss.set_weights.general": 0.2},
    ),
    deformable=_alone("deformable", "Deformable DETR"),
    deformable_longer=_longer("deformable", "Deformable DETR"),
    deformable_dino=_distilled("deformable", "Deformable DETR"),
    deformable_dino_general=_distilled("deformable", "Deformable DETR", general=True),
    conditional=_alone("conditional", "Conditional DETR"),
    conditional_longer=_longer("conditional", "Conditional DETR"),
    conditional_dino=_distilled("conditional", "Conditional DETR"),
    conditional_dino_general=_distilled("conditional", "Conditional DETR", general=True),
    ddq=_alone("ddq", "DDQ-DETR"),
    ddq_longer=_longer("ddq", "DDQ-DETR"),
    ddq_dino=_distilled("ddq", "DDQ-DETR"),
    ddq_dino_general=_distilled("ddq", "DDQ-DETR", general=True),
    dab_own=_distilled("dab", "DAB-DETR", "dab_teacher"),
    deformable_own=_distilled("deformable", "Deformable DETR", "deformable_teacher"),
    conditional_own=_distilled("conditional", "Conditional DETR", "conditional_teacher"),
    ddq_own=_distilled("ddq", "DDQ-DETR", "ddq_teacher"),
)
