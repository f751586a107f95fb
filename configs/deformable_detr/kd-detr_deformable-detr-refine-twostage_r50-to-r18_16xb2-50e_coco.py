_base_ = ["./deformable-detr-refine-twostage_r18_16xb2-50e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco/deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth",  # noqa: E501
        ap=47.0,
    ),
)
