# The paper's Table 1 and its ablation with the project's default loss: a tiny DINO on real images.
title = "Table 1 and ablation: DINO on BCCD"
seeds = [0, 1, 2, 3, 4]
options = {"train_cfg.val_interval": 4}

teachers = dict(
    dino=dict(
        config="configs/custom/dino_teacher.py",
        options={"train_cfg.max_epochs": 60, "param_scheduler.1.milestones": [48]},
    )
)

_no_rebalance = {"model.distill_loss.rebalance": False}
_general = {"model.points.specific": False}
_specific = {"model.points.num_general": 0}


def _distilled(title, options):
    return dict(
        title=title,
        config="configs/custom/kd-detr_dino.py",
        options=options,
        teacher="dino",
        baseline="alone",
        same_time=["alone", "alone_longer"],
    )


def _pairing(title, strategy):
    pairs = {"model.points._delete_": True, "model.points.type": "QueryPairing"}
    return _distilled(title, {**pairs, "model.points.strategy": strategy, **_no_rebalance})


runs = dict(
    alone=dict(title="alone", config="configs/custom/dino_alone.py"),
    # As long as a distilled one takes.
    alone_longer=dict(
        title="alone, twice as long",
        config="configs/custom/dino_alone.py",
        options={"train_cfg.max_epochs": 48, "param_scheduler.1.milestones": [38]},
    ),
    inconsistent=_pairing("inconsistent", "inconsistent"),
    similar_foreground=_pairing("similar foreground", "similar_foreground"),
    similar_general=_pairing("similar general", "similar_general"),
    hungarian=_pairing("Hungarian", "hungarian"),
    general=_distilled("general points", _general),
    specific=_distilled("specific points", _specific),
    both=_distilled("general and specific points", {}),
    general_no_rebalance=_distilled("general points, no rebalance", {**_general, **_no_rebalance}),
    specific_no_rebalance=_distilled(
        "specific points, no rebalance", {**_specific, **_no_rebalance}
    ),
    both_no_rebalance=_distilled("general and specific points, no rebalance", _no_rebalance),
    few=_distilled("10 general and specific points", {"model.points.num_general": 10}),
    many=_distilled("300 general and specific points", {"model.points.num_general": 300}),
    softmax=_distilled("both, softmax KL", {"model.distill_loss.class_term": "softmax"}),
    own_content=_distilled(
        "both, the student's own content",
        {"model.student_content": "blank", "model.blank_content": "nearest"},
    ),
)
