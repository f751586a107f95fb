_base_ = ["./dab_alone_bccd.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/dab_teacher_bccd.py",
        checkpoint="work_dirs/dab_teacher_bccd/epoch_48.pth",
    ),
    points=dict(num_general=60),
)
