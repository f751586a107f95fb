_base_ = "./kd-detr_dino-4scale_r50-to-faster-rcnn_r50_fpn_1x_coco.py"
model = dict(
    teacher=dict(
        config="mmdet::dino/dino-5scale_swin-l_8xb2-36e_coco.py",
        checkpoint="https://github.com/RistoranteRist/mmlab-weights/releases/download/dino-swinl/dino-5scale_swin-l_8xb2-36e_coco-5486e051.pth",  # noqa: E501
        ap=58.4,
    )
)
