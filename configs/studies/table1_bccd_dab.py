# The rows of table1_bccd.py with a tiny DAB-DETR by a larger one instead.
_base_ = "./table1_bccd.py"
title = "Table 1 and ablation: DAB-DETR on BCCD"
options = dict(_delete_=True)

_long = {"train_cfg.max_epochs": 96, "param_scheduler.1.milestones": [72]}
teachers = dict(
    _delete_=True,
    dab_teacher=dict(config="configs/tiny/dab_teacher_bccd.py", options=_long),
)

_student = "configs/tiny/dab_alone_bccd.py"
_distilled = dict(config="configs/tiny/kd-detr_dab_bccd.py", teacher="dab_teacher")
runs = dict(
    alone=dict(config=_student),
    alone_longer=dict(config=_student, options=_long),
    inconsistent=_distilled,
    similar_foreground=_distilled,
    similar_general=_distilled,
    hungarian=_distilled,
    general=_distilled,
    specific=_distilled,
    both=_distilled,
    general_no_rebalance=_distilled,
    specific_no_rebalance=_distilled,
    both_no_rebalance=_distilled,
    few=_distilled,
    many=_distilled,
    softmax=_distilled,
    own_content=_distilled,
)
