_base_ = ["./ddq-detr-4scale_r18_8xb2-12e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v3.0/ddq/ddq-detr-4scale_r50_8xb2-12e_coco/ddq-detr-4scale_r50_8xb2-12e_coco_20230809_170711-42528127.pth",  # noqa: E501
        ap=51.4,
    ),
)
