# A DINO for one class whose backbone, MobileNetV2, starts from ImageNet weights in mmdet's names.
_base_ = "../custom/dino_teacher.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="MobileNetV2",
        out_indices=(2, 4, 7),
        init_cfg=dict(type="Pretrained", checkpoint="data/mobilenet_v2.pth"),
    ),
    neck=dict(in_channels=[32, 96, 1280]),
    bbox_head=dict(num_classes=1),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
