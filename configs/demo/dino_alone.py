# The student alone, on generated data (`python tools/demo.py` writes it to data/shapes).
_base_ = "../_base_/tiny_dino.py"

data_root = "data/shapes/"
classes = ("disc", "square", "triangle", "ring")
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="images/train/"),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="images/val/"),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

model = dict(bbox_head=dict(num_classes=len(classes)))

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=50),
    dict(type="MultiStepLR", by_epoch=True, milestones=[6], gamma=0.1),
]
randomness = dict(seed=0)
