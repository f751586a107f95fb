_base_ = "mmdet::detr/detr_r50_8xb2-150e_coco.py"
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[512]),
)
