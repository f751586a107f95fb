"""What a detector costs: numbers worked by hand."""

import pytest
import torch
from conftest import FAMILY_CONFIGS, build, dino_config
from torch import nn

from kd_detr_mmdet.utils.complexity import gflops, params_m


class Tiny(nn.Module):
    """A 3 x 3 convolution of stride 2 and a linear layer: 3 -> 8 channels -> 5."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.seen = []

    def forward(self, inputs, data_samples, mode):
        self.seen.append((mode, data_samples, self.training, torch.is_grad_enabled()))
        return self.fc(self.bn(self.conv(inputs)).mean((2, 3)))


def test_params_by_hand():
    # conv 8 * 3 * 3 * 3, batch norm 8 + 8 (buffers are none), linear 5 * 8 + 5
    assert params_m(Tiny()) == (216 + 16 + 45) / 1e6


@pytest.mark.parametrize("batch_size", [1, 2])
def test_gflops_by_hand(batch_size):
    # Multiply-adds: every one of 10 x 15 x 8 outputs takes 3 * 3 * 3; the linear layer 8 * 5.
    expected = batch_size * (10 * 15 * 8 * 27 + 8 * 5) / 1e9
    inputs = torch.zeros(batch_size, 3, 20, 30)
    assert gflops(Tiny(), inputs, []) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_detector_as_it_was(training):
    tiny = Tiny().train(training)
    samples = [object()]
    mean = tiny.bn.running_mean.clone()
    gflops(tiny, torch.rand(2, 3, 20, 30), samples)
    assert tiny.training is tiny.conv.training is training
    assert torch.equal(tiny.bn.running_mean, mean)
    # One pass as at inference.
    assert tiny.seen == [("tensor", samples, False, False)]


def test_a_larger_image_costs_a_detector_more(batch):
    detector = build(dino_config())
    small = batch(detector, ((3, 64, 96),), training=False)
    large = batch(detector, ((3, 128, 192),), training=False)
    costs = [gflops(detector, data["inputs"], data["data_samples"]) for data in (small, large)]
    # The backbone grows with the area; the decoder's queries stay as many.
    assert 2 * costs[0] < costs[1] < 4 * costs[0]


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_every_family_is_counted_and_left_as_it_was(family, batch):
    model = build(FAMILY_CONFIGS[family]).train()
    learnt = [p.requires_grad for p in model.parameters()]
    data = batch(model, training=False)
    assert gflops(model, data["inputs"], data["data_samples"]) > 0
    assert [p.requires_grad for p in model.parameters()] == learnt and any(learnt)
    assert model.training
