# The teacher: three layers each in encoder and decoder, 300 queries. Train it first.
_base_ = "../_base_/mobilenet_dino.py"

data_root = "data/bccd/"
classes = ("Platelets", "RBC", "WBC")
annotations = dict(train="annotations/instances_train.json", val="annotations/instances_val.json")

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file=annotations["train"],
        data_prefix=dict(img="images/train/"),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file=annotations["val"],
        data_prefix=dict(img="images/val/"),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + annotations["val"])
test_evaluator = val_evaluator

model = dict(bbox_head=dict(num_classes=len(classes)))

max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=8)
default_hooks = dict(checkpoint=dict(interval=8))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=50),
    dict(type="MultiStepLR", by_epoch=True, milestones=[int(0.8 * max_epochs)], gamma=0.1),
]
