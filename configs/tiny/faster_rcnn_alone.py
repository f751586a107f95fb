# Faster R-CNN of about the DINO student's size: anchors of 12 to 128 pixels, few RoIs.
_base_ = "../demo/dino_alone.py"
strides = [4, 8, 16, 32]
nms = dict(type="nms", iou_threshold=0.7)
proposals = dict(nms_pre=50, max_per_img=100, nms=nms, min_bbox_size=0)
model = dict(
    _delete_=True,
    type="FasterRCNN",
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=16,
        stem_channels=16,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type="BN"),
        norm_eval=False,
    ),
    neck=dict(type="FPN", in_channels=[16, 32, 64, 128], out_channels=32, num_outs=len(strides)),
    rpn_head=dict(
        type="RPNHead",
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[3, 4], ratios=[0.5, 1.0, 2.0], strides=strides
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=32,
            featmap_strides=strides,
            finest_scale=14,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=32,
            fc_out_channels=128,
            roi_feat_size=7,
            num_classes=4,
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            loss_cls=dict(type="CrossEntropyLoss"),
            loss_bbox=dict(type="L1Loss"),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type="RandomSampler", num=64, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=proposals,
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
            ),
            sampler=dict(type="RandomSampler", num=64, pos_fraction=0.25),
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=proposals,
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
)
