# The same student, distilled with the project's defaults.
_base_ = ["./dino_alone.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/dino_teacher.py",
        checkpoint="work_dirs/dino_teacher/epoch_24.pth",
    ),
)
