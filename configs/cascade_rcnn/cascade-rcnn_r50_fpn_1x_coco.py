_base_ = "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"
