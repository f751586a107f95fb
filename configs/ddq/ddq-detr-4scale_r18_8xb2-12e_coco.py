_base_ = "mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py"
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[128, 256, 512]),
)
