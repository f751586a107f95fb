# The student alone, on generated data (`python tools/demo.py` writes it to data/shapes).
_base_ = "../_base_/tiny_dino.py"

data_root = "data/shapes/"
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
shapes = dict(
    type="CocoDataset",
    data_root=data_root,
    metainfo=dict(classes=("disc", "square", "triangle", "ring")),
)
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="images/train/"),
        pipeline=[*load, flip, pack],
        **shapes,
    ),
)
val_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="images/val/"),
        pipeline=[*load, pack],
        test_mode=True,
        **shapes,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

model = dict(bbox_head=dict(num_classes=4))

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=50),
    dict(type="MultiStepLR", by_epoch=True, milestones=[int(0.8 * max_epochs)], gamma=0.1),
]
randomness = dict(seed=0)
