_base_ = "./kd-detr_deformable-detr-refine-twostage_r50-to-r18_16xb2-50e_coco.py"
model = dict(
    student=dict(as_two_stage=False, with_box_refine=False),
    teacher=dict(
        config="mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr_r50_16xb2-50e_coco/deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth",  # noqa: E501
        ap=44.3,
    ),
)
