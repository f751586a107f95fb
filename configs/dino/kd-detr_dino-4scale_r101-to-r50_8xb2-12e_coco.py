_base_ = ["./dino-4scale_r50_8xb2-12e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/dino-4scale_r101_8xb2-36e_coco.py",
        checkpoint="work_dirs/dino-4scale_r101_8xb2-36e_coco/epoch_36.pth",
    ),
)
