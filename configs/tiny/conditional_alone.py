# Conditional DETR, small but for its width: mmdet's code of it is made for 256. Stride and batch
# size are the DAB-DETR's.
_base_ = "./dab_alone.py"
model = dict(
    _delete_=True,
    type="ConditionalDETR",
    num_queries=30,
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone={{_base_.model.backbone}},
    neck=dict(
        type="ChannelMapper", in_channels=[128], out_channels=256, kernel_size=1, act_cfg=None
    ),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, batch_first=True),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=256),
        ),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, cross_attn=False),
            cross_attn_cfg=dict(embed_dims=256, num_heads=8, cross_attn=True),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=256),
        ),
        return_intermediate=True,
    ),
    positional_encoding=dict(num_feats=128, normalize=True),
    bbox_head=dict(
        type="ConditionalDETRHead",
        num_classes=4,
        embed_dims=256,
        loss_cls={{_base_.model.bbox_head.loss_cls}},
        loss_bbox={{_base_.model.bbox_head.loss_bbox}},
        loss_iou={{_base_.model.bbox_head.loss_iou}},
    ),
    train_cfg={{_base_.model.train_cfg}},
    test_cfg=dict(max_per_img=30),
)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
