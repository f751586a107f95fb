_base_ = "../dab_detr/kd-detr_dab-detr_r50-to-r18_8xb2-50e_coco.py"
model = dict(points=dict(num_general=0))
