# Which loss at points, on real images: content, class term, weights, and when to stop.
title = "Losses at points: DINO on BCCD"
seeds = [0, 1, 2, 3, 4]
options = {"train_cfg.val_interval": 4}

teachers = dict(
    dino=dict(
        config="configs/custom/dino_teacher.py",
        options={
            "train_cfg.max_epochs": 60,
            "param_scheduler.1.milestones": [48],
        },
    )
)


def _distilled(title, *options, config="configs/custom/kd-detr_dino.py"):
    return dict(
        title=title,
        config=config,
        options={key: value for some in options for key, value in some.items()},
        teacher="dino",
        baseline="alone",
        same_time=["alone", "alone_2x"],
    )


def _weights(cls, l1, giou):
    return {
        "model.distill_loss.cls_weight": cls,
        "model.distill_loss.l1_weight": l1,
        "model.distill_loss.giou_weight": giou,
    }


_heavy = _weights(8.0, 20.0, 8.0)
_light = _weights(1.0, 5.0, 2.0)
_own = {"model.student_content": "blank", "model.blank_content": "nearest"}
_specific = {"model.points.num_general": 0}
_authors = {"model.distill_loss.class_term": "softmax", **_light}
_proposals = {
    "model.points.num_general": 0,
    "model.points.specific": False,
    "model.points.proposals": True,
}
_both = {
    "model.points.num_general": 60,
    "model.points.specific": True,
    "model.points.proposals": False,
}


def _early(title, *options):
    title = f"{title}, for ten epochs, then alone"
    return _distilled(title, _both, *options, config="configs/custom/kd-detr_dino_early.py")


runs = dict(
    alone=dict(title="alone", config="configs/custom/dino_alone.py"),
    alone_2x=dict(
        title="alone, twice as long",
        config="configs/custom/dino_alone.py",
        options={"train_cfg.max_epochs": 48, "param_scheduler.1.milestones": [38]},
    ),
    teacher_content=_distilled("the teacher's content, 8 / 20 / 8", _heavy),
    own=_distilled("own content, 8 / 20 / 8", _own, _heavy),
    own_boxes=_distilled("own content, boxes only: 0 / 20 / 8", _own, _weights(0.0, 20.0, 8.0)),
    own_softmax=_distilled("own content, softmax KL, 1 / 5 / 2", _own, _authors),
    teacher_content_softmax=_distilled("the teacher's content, softmax KL, 1 / 5 / 2", _authors),
    own_quarter=_distilled("own content, 2 / 5 / 2", _own, _weights(2.0, 5.0, 2.0)),
    teacher_content_light=_distilled("the teacher's content, 1 / 5 / 2", _light),
    own_early=_early("own content, 8 / 20 / 8", _own, _heavy),
    teacher_content_softmax_early=_early("the teacher's content, softmax KL, 1 / 5 / 2", _authors),
    proposals=_distilled("proposals, 8 / 20 / 8", _proposals, _heavy),
    proposals_light=_distilled("proposals, 1 / 5 / 2", _proposals, _light),
    proposals_softmax=_distilled("proposals, softmax KL, 1 / 5 / 2", _proposals, _authors),
    own_specific=_distilled("own content, specific points only", _own, _specific, _heavy),
    teacher_content_specific=_distilled(
        "the teacher's content, specific points only", _specific, _heavy
    ),
    own_no_rebalance=_distilled(
        "own content, no rebalance", _own, _heavy, {"model.distill_loss.rebalance": False}
    ),
)
