# mmdet's DINO with a MobileNetV2 that starts from ImageNet weights, half its layers and a third of
# its queries, for images of 320 pixels. The data set's paths and classes are left to the heirs.
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
model = dict(
    num_queries=300,
    backbone=dict(
        _delete_=True,
        type="MobileNetV2",
        out_indices=(2, 4, 7),
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="data/mobilenet_v2.pth"),
    ),
    neck=dict(in_channels=[32, 96, 1280]),
    encoder=dict(num_layers=3),
    decoder=dict(num_layers=3),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=8)

load = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(320, 320), keep_ratio=True),
]
pack = dict(
    type="PackDetInputs",
    meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        filter_cfg=dict(filter_empty_gt=False, min_size=1),
        pipeline=[*load, dict(type="RandomFlip", prob=0.5), pack],
    ),
)
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=[*load, pack]))
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=1))
