# The teacher: a wider backbone, a deeper decoder, more queries. Train it first.
_base_ = "./dino_alone.py"
model = dict(
    num_queries=60,
    backbone=dict(base_channels=32, stem_channels=32),
    neck=dict(in_channels=[64, 128, 256]),
    decoder=dict(num_layers=3),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=40)),
    test_cfg=dict(max_per_img=60),
)
