# The DAB-DETR on real images, BCCD in data/bccd.
_base_ = "./dab_alone.py"

data_root = "data/bccd/"
classes = ("Platelets", "RBC", "WBC")
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=dict(classes=classes)))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=dict(classes=classes)))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

model = dict(bbox_head=dict(num_classes=len(classes)))

# As many iterations as on the generated images: a DAB-DETR needs more time than a DINO.
max_epochs = 48
train_cfg = dict(max_epochs=max_epochs, val_interval=8)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=50),
    dict(type="MultiStepLR", by_epoch=True, milestones=[36], gamma=0.1),
]
