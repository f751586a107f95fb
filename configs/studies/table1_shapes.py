# The paper's Table 1 and its ablation with the project's default loss: a tiny DINO and a tiny
# DAB-DETR, each taught by a larger one of its family.
title = "Table 1 and ablation: DINO and DAB-DETR on generated images"
seeds = [0, 1, 2, 3, 4]
data = dict(train=600, val=150, size=(128, 96))
options = {"train_cfg.val_interval": 4}

_long = {
    "train_cfg.max_epochs": 40,
    "train_cfg.val_interval": 4,
    "param_scheduler.1.milestones": [32],
}
teachers = dict(
    dino_teacher=dict(config="configs/demo/dino_teacher.py", options=_long),
    dab_teacher=dict(config="configs/tiny/dab_teacher.py", options=_long),
)

_no_rebalance = {"model.distill_loss.rebalance": False}
_general = {"model.points.specific": False}
_specific = {"model.points.num_general": 0}


def _schedule(epochs):
    return {"train_cfg.max_epochs": epochs, "param_scheduler.1.milestones": [epochs * 3 // 4]}


def _weights(cls, l1, giou):
    weights = dict(cls=cls, l1=l1, giou=giou)
    return {f"model.distill_loss.{term}_weight": weight for term, weight in weights.items()}


def _pairing(strategy, rebalance=False):
    return {
        "model.points._delete_": True,
        "model.points.type": "QueryPairing",
        "model.points.strategy": strategy,
        "model.distill_loss.rebalance": rebalance,
    }


_table = dict(
    inconsistent=("inconsistent", _pairing("inconsistent")),
    similar_foreground=("similar foreground", _pairing("similar_foreground")),
    similar_general=("similar general", _pairing("similar_general")),
    hungarian=("Hungarian", _pairing("hungarian")),
    # What is it that teaches, the shared points or the rebalance at the teacher's queries?
    inconsistent_rebalance=("inconsistent, rebalance", _pairing("inconsistent", rebalance=True)),
    hungarian_rebalance=("Hungarian, rebalance", _pairing("hungarian", rebalance=True)),
    general=("general points", _general),
    specific=("specific points", _specific),
    both=("general and specific points", {}),
    general_no_rebalance=("general points, no rebalance", {**_general, **_no_rebalance}),
    specific_no_rebalance=("specific points, no rebalance", {**_specific, **_no_rebalance}),
    both_no_rebalance=("general and specific points, no rebalance", _no_rebalance),
    few=("10 general and specific points", {"model.points.num_general": 10}),
    many=("300 general and specific points", {"model.points.num_general": 300}),
    # One divisor for both sets, so that random boxes on nothing count little; the weights are the
    # others' by the DINO teacher's sum of w at its own queries, about 4 an image.
    images=(
        "both, per image",
        {"model.distill_loss.normalize": "images", **_weights(0.25, 1.25, 0.5)},
    ),
    softmax=("both, softmax KL", {"model.distill_loss.class_term": "softmax"}),
    own_content=(
        "both, the student's own content",
        {"model.student_content": "blank", "model.blank_content": "nearest"},
    ),
)


def _family(name, title, alone, distilled, teacher, schedule, longer):
    rows = {
        name: dict(title=f"{title} alone", config=alone, options=schedule),
        # As long as a distilled one takes.
        f"{name}_longer": dict(title=f"{title} alone, twice as long", config=alone, options=longer),
    }
    for key, (what, options) in _table.items():
        rows[f"{name}_{key}"] = dict(
            title=f"{title}: {what}",
            config=distilled,
            options={**schedule, **_weights(1.0, 5.0, 2.0), **options},
            teacher=teacher,
            baseline=name,
            same_time=[name, f"{name}_longer"],
        )
    return rows


runs = dict(
    **_family(
        "dino",
        "DINO",
        "configs/demo/dino_alone.py",
        "configs/demo/kd-detr_dino.py",
        "dino_teacher",
        {},  # the config's own 8 epochs
        _schedule(16),
    ),
    **_family(
        "dab",
        "DAB-DETR",
        "configs/tiny/dab_alone.py",
        "configs/tiny/kd-detr_dab.py",
        "dab_teacher",
        # Without denoising queries and encoder proposals a DAB-DETR needs more time than a DINO.
        _schedule(16),
        _schedule(32),
    ),
)
