_base_ = "mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py"
