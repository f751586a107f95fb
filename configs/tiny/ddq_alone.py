# DDQ-DETR of the DINO student's size: distinct queries by NMS, dense ones beside them in training.
_base_ = "../demo/dino_alone.py"
model = dict(type="DDQDETR", bbox_head=dict(type="DDQDETRHead"))
