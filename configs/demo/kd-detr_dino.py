# The same student, distilled.
_base_ = ["./dino_alone.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/dino_teacher.py",
        checkpoint="work_dirs/demo/teacher/epoch_8.pth",
    ),
    points=dict(num_general=60),
    # Those of the README's table and of the studies that stand on this config, not the defaults.
    distill_loss=dict(cls_weight=8.0, l1_weight=20.0, giou_weight=8.0),
)
