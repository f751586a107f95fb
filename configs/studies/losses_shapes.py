# Class term and weights at points, on the demo's generated images.
title = "Losses at points: DINO on generated images"
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


def _distilled(title, class_term, cls, l1, giou):
    return dict(
        title=title,
        config="configs/demo/kd-detr_dino.py",
        options={
            "model.distill_loss.class_term": class_term,
            "model.distill_loss.cls_weight": cls,
            "model.distill_loss.l1_weight": l1,
            "model.distill_loss.giou_weight": giou,
        },
        teacher="dino",
        baseline="alone",
    )


runs = dict(
    alone=dict(title="alone", config="configs/demo/dino_alone.py"),
    softmax=_distilled("softmax KL, 1 / 5 / 2", "softmax", 1.0, 5.0, 2.0),
    bernoulli=_distilled("Bernoulli KL, 1 / 5 / 2", "bernoulli", 1.0, 5.0, 2.0),
    bernoulli_heavy=_distilled("Bernoulli KL, 8 / 20 / 8", "bernoulli", 8.0, 20.0, 8.0),
)
