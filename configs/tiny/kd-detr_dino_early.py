# Distilled at the encoders' proposals for four of eight epochs, then the student alone.
_base_ = "../demo/kd-detr_dino.py"
model = dict(points=dict(num_general=0, specific=False, proposals=True))
custom_hooks = [dict(type="KDWarmup", off=4, by_epoch=True)]
