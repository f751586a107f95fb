_base_ = "./deformable-detr-refine_r18_16xb2-50e_coco.py"
model = dict(as_two_stage=True)
