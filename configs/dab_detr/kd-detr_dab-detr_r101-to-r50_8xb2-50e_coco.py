_base_ = ["./dab-detr_r50_8xb2-50e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/dab-detr_r101_8xb2-50e_coco.py",
        checkpoint="work_dirs/dab-detr_r101_8xb2-50e_coco/epoch_50.pth",
    ),
)
