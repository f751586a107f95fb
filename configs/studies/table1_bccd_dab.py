# The paper's Table 1 and its ablation on real images: a tiny DAB-DETR by a larger one.
title = "Table 1 and ablation: DAB-DETR on BCCD"
seeds = [0, 1, 2, 3, 4]

_long = {"train_cfg.max_epochs": 96, "param_scheduler.1.milestones": [72]}
teachers = dict(dab_teacher=dict(config="configs/tiny/dab_teacher_bccd.py", options=_long))

_no_rebalance = {"model.distill_loss.rebalance": False}
_general = {"model.points.specific": False}
_specific = {"model.points.num_general": 0}


def _distilled(title, options):
    return dict(
        title=title,
        config="configs/tiny/kd-detr_dab_bccd.py",
        options=options,
        teacher="dab_teacher",
        baseline="alone",
        same_time=["alone", "alone_longer"],
    )


def _pairing(title, strategy):
    pairs = {"model.points._delete_": True, "model.points.type": "QueryPairing"}
    return _distilled(title, {**pairs, "model.points.strategy": strategy, **_no_rebalance})


_student = "configs/tiny/dab_alone_bccd.py"
runs = dict(
    alone=dict(title="alone", config=_student),
    alone_longer=dict(title="alone, twice as long", config=_student, options=_long),
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
)
