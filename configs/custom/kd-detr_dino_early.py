# Distilled at the encoders' proposals for ten epochs, then the student alone.
_base_ = "./kd-detr_dino.py"
model = dict(
    points=dict(num_general=0, specific=False, proposals=True),
    distill_loss=dict(cls_weight=8.0, l1_weight=20.0, giou_weight=8.0),
)
custom_hooks = [dict(type="KDWarmup", off=10, by_epoch=True)]
