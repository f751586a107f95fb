# The same teacher for a single class.
_base_ = "./dino_teacher.py"
model = dict(bbox_head=dict(num_classes=1))
