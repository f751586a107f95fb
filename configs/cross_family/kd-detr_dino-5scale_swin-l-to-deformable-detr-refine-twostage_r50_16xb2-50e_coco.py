_base_ = [
    "../deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py",
    "../_base_/kd_detr.py",
]
model = dict(
    _delete_=True,
    type="KDDETR",
    student={{_base_.model}},
    teacher=dict(
        config="mmdet::dino/dino-5scale_swin-l_8xb2-36e_coco.py",
        checkpoint="https://github.com/RistoranteRist/mmlab-weights/releases/download/dino-swinl/dino-5scale_swin-l_8xb2-36e_coco-5486e051.pth",  # noqa: E501
        ap=58.4,
    ),
)
