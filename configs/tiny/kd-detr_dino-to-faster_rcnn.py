_base_ = ["./faster_rcnn_alone.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/../demo/dino_teacher.py",
        checkpoint="work_dirs/demo/teacher/epoch_8.pth",
    ),
    points=dict(type="CoordinateSampler", max_points=64),
    distill_loss=dict(cls_weight=2.0, l1_weight=5.0, giou_weight=2.0),
)
