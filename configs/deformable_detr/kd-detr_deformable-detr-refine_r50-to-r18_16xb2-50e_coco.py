_base_ = "./kd-detr_deformable-detr-refine-twostage_r50-to-r18_16xb2-50e_coco.py"
model = dict(
    student=dict(as_two_stage=False),
    teacher=dict(
        config="mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco/deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93.pth",  # noqa: E501
        ap=46.2,
    ),
)
