# A DDQ-DETR teacher: twice the backbone's width, one more decoder layer, twice the queries.
_base_ = "../demo/dino_teacher.py"
model = dict(type="DDQDETR", bbox_head=dict(type="DDQDETRHead"))
