# The other direction: the student's RoI head is asked at the teacher's queries and at random boxes.
_base_ = "./kd-detr_dino-4scale_r50-to-faster-rcnn_r50_fpn_1x_coco.py"
model = dict(points=dict(type="DistillPointGenerator"))
