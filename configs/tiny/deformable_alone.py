# Deformable DETR with box refinement, one stage, of about the DINO student's size.
_base_ = "../demo/dino_alone.py"
model = dict(
    _delete_=True,
    type="DeformableDETR",
    with_box_refine=True,
    as_two_stage=False,
    num_queries=30,
    num_feature_levels=3,
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone={{_base_.model.backbone}},
    neck={{_base_.model.neck}},
    encoder={{_base_.model.encoder}},
    decoder={{_base_.model.decoder}},
    positional_encoding=dict(num_feats=32, normalize=True, offset=-0.5),
    bbox_head=dict(
        type="DeformableDETRHead",
        num_classes=4,
        embed_dims=64,
        sync_cls_avg_factor=True,
        loss_cls={{_base_.model.bbox_head.loss_cls}},
        loss_bbox={{_base_.model.bbox_head.loss_bbox}},
        loss_iou={{_base_.model.bbox_head.loss_iou}},
    ),
    train_cfg={{_base_.model.train_cfg}},
    test_cfg=dict(max_per_img=30),
)
