_base_ = ["./ddq_alone.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/ddq_teacher.py",
        checkpoint="work_dirs/ddq_teacher/epoch_8.pth",
    ),
    points=dict(num_general=60),
)
