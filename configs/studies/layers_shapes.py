# Which layers meet: a DINO student as deep as its teacher, each of its layers by the teacher's last
# one, or layer by layer. Teacher, images and weights are those of table1_shapes.py.
title = "Layer pairing: DINO on generated images"
seeds = [0, 1, 2, 3, 4]
data = dict(train=600, val=150, size=(128, 96))
options = {"train_cfg.val_interval": 4}

teachers = dict(
    dino_teacher=dict(
        config="configs/demo/dino_teacher.py",
        options={
            "train_cfg.max_epochs": 40,
            "train_cfg.val_interval": 4,
            "param_scheduler.1.milestones": [32],
        },
    )
)


def _distilled(title, layers):
    return dict(
        title=title,
        config="configs/demo/kd-detr_dino.py",
        options={
            "model.student.decoder.num_layers": 3,
            "model.distill_loss.cls_weight": 1.0,
            "model.distill_loss.l1_weight": 5.0,
            "model.distill_loss.giou_weight": 2.0,
            "model.distill_loss.layers": layers,
        },
        teacher="dino_teacher",
        baseline="alone",
    )


runs = dict(
    alone=dict(
        title="alone", config="configs/demo/dino_alone.py", options={"model.decoder.num_layers": 3}
    ),
    last=_distilled("by the teacher's last layer", "last"),
    one_to_one=_distilled("layer by layer", "one_to_one"),
)
