# A DINO of 0.9 M parameters for images of 128 x 96 pixels, trained from scratch on a CPU. It keeps
# everything of mmdet's DINO but sizes; the data set's paths and classes are left to the heirs.
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
model = dict(
    num_queries=30,
    num_feature_levels=3,
    backbone=dict(
        depth=18,
        base_channels=16,
        stem_channels=16,
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128], out_channels=64, norm_cfg=dict(num_groups=8), num_outs=3),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=64, num_heads=4, num_levels=3),
            ffn_cfg=dict(embed_dims=64, feedforward_channels=256),
        ),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=64, num_heads=4),
            cross_attn_cfg=dict(embed_dims=64, num_heads=4, num_levels=3),
            ffn_cfg=dict(embed_dims=64, feedforward_channels=256),
        ),
    ),
    positional_encoding=dict(num_feats=32),
    bbox_head=dict(num_classes=4, embed_dims=64),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    test_cfg=dict(max_per_img=30),
)
# One learning rate for all, since nothing is pretrained.
optim_wrapper = dict(optimizer=dict(lr=8e-4), paramwise_cfg=dict(_delete_=True))
auto_scale_lr = dict(base_batch_size=8)

load = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(128, 96), keep_ratio=True),
]
pack = dict(
    type="PackDetInputs",
    meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
)
flip = dict(type="RandomFlip", prob=0.5, direction=["horizontal", "vertical"])
train_dataloader = dict(
    batch_size=8,
    num_workers=0,  # a worker process costs more than loading images this small
    persistent_workers=False,
    dataset=dict(filter_cfg=dict(filter_empty_gt=False, min_size=1), pipeline=[*load, flip, pack]),
)
val_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(pipeline=[*load, pack])
)
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=1))
