# Boxes without classes, at the student's proposals: the Faster R-CNN that
# gained most in docs/studies.
_base_ = "./kd-detr_dino-4scale_r50-to-faster-rcnn_r50_fpn_1x_coco.py"
model = dict(points=dict(boxes="proposals"), distill_loss=dict(cls_weight=0.0))
