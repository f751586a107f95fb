_base_ = ["./dab-detr_r18_8xb2-50e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v3.0/dab_detr/dab-detr_r50_8xb2-50e_coco/dab-detr_r50_8xb2-50e_coco_20221122_120837-c1035c8c.pth",  # noqa: E501
        ap=42.3,
    ),
)
