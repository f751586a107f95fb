# DAB-DETR of about the DINO student's size, on the demo's data. Stride 8 in the last stage, since
# 128 x 96 pixels leave a stride of 32 no more than 4 x 3 places; anchors start all over the image.
_base_ = "../demo/dino_alone.py"
attention = dict(embed_dims=64, num_heads=4, attn_drop=0.0, proj_drop=0.0)
ffn = dict(embed_dims=64, feedforward_channels=256, num_fcs=2, ffn_drop=0.0)
model = dict(
    _delete_=True,
    type="DABDETR",
    num_queries=30,
    with_random_refpoints=True,
    num_patterns=0,
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(3,),
        norm_cfg=dict(type="BN"),
        norm_eval=False,
    ),
    neck=dict(
        type="ChannelMapper", in_channels=[128], out_channels=64, kernel_size=1, act_cfg=None
    ),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=64, num_heads=4, batch_first=True),
            ffn_cfg=dict(ffn, act_cfg=dict(type="PReLU")),
        ),
    ),
    decoder=dict(
        num_layers=2,
        query_dim=4,
        query_scale_type="cond_elewise",
        with_modulated_hw_attn=True,
        layer_cfg=dict(
            self_attn_cfg=dict(attention, cross_attn=False),
            cross_attn_cfg=dict(attention, cross_attn=True),
            ffn_cfg=dict(ffn, act_cfg=dict(type="PReLU")),
        ),
        return_intermediate=True,
    ),
    positional_encoding=dict(num_feats=32, temperature=20, normalize=True),
    bbox_head=dict(
        type="DABDETRHead",
        num_classes=4,
        embed_dims=64,
        loss_cls={{_base_.model.bbox_head.loss_cls}},
        loss_bbox={{_base_.model.bbox_head.loss_bbox}},
        loss_iou={{_base_.model.bbox_head.loss_iou}},
    ),
    train_cfg={{_base_.model.train_cfg}},
    test_cfg=dict(max_per_img=30),
)
# Slow to learn without denoising queries and encoder proposals: many small steps.
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
