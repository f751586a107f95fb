_base_ = ["./deformable-detr-refine-twostage_r50_16xb2-50e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="{{ fileDirname }}/deformable-detr-refine-twostage_r101_16xb2-50e_coco.py",
        checkpoint="work_dirs/deformable-detr-refine-twostage_r101_16xb2-50e_coco/epoch_50.pth",
    ),
)
