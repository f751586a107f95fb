# The student alone: the same backbone, one layer in the encoder, two in the decoder, 100 queries.
_base_ = "./dino_teacher.py"
model = dict(
    num_queries=100,
    encoder=dict(num_layers=1, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    decoder=dict(num_layers=2, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    test_cfg=dict(max_per_img=100),
)
