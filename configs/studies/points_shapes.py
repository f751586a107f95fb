# Points, content and pairings around the weights 8 / 20 / 8: a tiny DINO on generated images.
title = "Which points, which loss: DINO on generated images"
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
    config="configs/demo/kd-detr_dino.py",
    teacher="dino",
    baseline="alone",
    same_time=["alone", "alone_2x"],
)
_nearest = {"model.student_content": "blank", "model.blank_content": "nearest"}
_specific = {"model.points.num_general": 0, **_nearest}


def _pairing(strategy):
    return dict(
        _distilled,
        title=f"no shared points: {strategy.replace('_', ' ')}",
        options={
            "model.points._delete_": True,
            "model.points.type": "QueryPairing",
            "model.points.strategy": strategy,
            "model.distill_loss.rebalance": False,
        },
    )


runs = dict(
    alone=dict(title="alone", config="configs/demo/dino_alone.py"),
    alone_2x=dict(title="alone, twice as long", config="configs/demo/dino_alone_longer.py"),
    specific_teacher=dict(
        _distilled,
        title="specific, the teacher's content",
        options={"model.points.num_general": 0},
    ),
    specific=dict(_distilled, title="specific, own content", options=_specific),
    both=dict(_distilled, title="general and specific, own content", options=_nearest),
    both_teacher=dict(_distilled, title="general and specific, the teacher's content"),
    inconsistent=_pairing("inconsistent"),
    similar_general=_pairing("similar_general"),
    hungarian=_pairing("hungarian"),
    specific_no_rebalance=dict(
        _distilled,
        title="specific, own content, no rebalance",
        options={**_specific, "model.distill_loss.rebalance": False},
    ),
    specific_softmax=dict(
        _distilled,
        title="specific, own content, softmax KL",
        options={**_specific, "model.distill_loss.class_term": "softmax"},
    ),
    specific_quarter=dict(
        _distilled,
        title="specific, own content, weights 2 / 5 / 2",
        options={
            **_specific,
            "model.distill_loss.cls_weight": 2.0,
            "model.distill_loss.l1_weight": 5.0,
            "model.distill_loss.giou_weight": 2.0,
        },
    ),
)
