# The student alone for about as long as the distilled one takes: a step of distillation costs about
# twice as much.
_base_ = "./dino_alone.py"
train_cfg = dict(max_epochs=16)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=50),
    dict(type="MultiStepLR", by_epoch=True, milestones=[12], gamma=0.1),
]
