# Distilled for three epochs, then the student alone.
_base_ = "./kd-detr_dino-to-faster_rcnn.py"
custom_hooks = [dict(type="KDWarmup", off=3, by_epoch=True)]
