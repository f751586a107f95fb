_base_ = ["../dab_detr/dab-detr_r18_8xb2-50e_coco.py", "../_base_/kd_detr.py"]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v3.0/dino/dino-4scale_r50_8xb2-12e_coco/dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth",  # noqa: E501
        ap=49.0,
    ),
    # A DINO says "nothing" at nearly all random boxes, and a student without encoder proposals
    # learns to say so too: docs/studies/README.md, "families_shapes".
    points=dict(num_general=0),
)
