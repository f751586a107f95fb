_base_ = ["./deformable_alone.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/deformable_teacher.py",
        checkpoint="work_dirs/deformable_teacher/epoch_8.pth",
    ),
    points=dict(num_general=60),
)
