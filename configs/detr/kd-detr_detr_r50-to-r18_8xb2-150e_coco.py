_base_ = ["./detr_r18_8xb2-150e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="mmdet::detr/detr_r50_8xb2-150e_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v3.0/detr/detr_r50_8xb2-150e_coco/detr_r50_8xb2-150e_coco_20221023_153551-436d03e8.pth",  # noqa: E501
        ap=39.9,
    ),
    points=dict(num_general=0),  # DETR's queries have no coordinates
)
