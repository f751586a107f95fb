_base_ = ["./conditional-detr_r18_8xb2-50e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v3.0/conditional_detr/conditional-detr_r50_8xb2-50e_coco/conditional-detr_r50_8xb2-50e_coco_20221121_180202-c83a1dc0.pth",  # noqa: E501
        ap=40.9,
    ),
)
