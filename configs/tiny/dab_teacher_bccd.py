# Its teacher: twice the backbone's width, one more decoder layer, twice the queries.
_base_ = "./dab_alone_bccd.py"
model = dict(
    num_queries=60,
    backbone=dict(base_channels=32, stem_channels=32),
    neck=dict(in_channels=[256]),
    decoder=dict(num_layers=3),
    test_cfg=dict(max_per_img=60),
)
