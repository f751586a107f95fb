"""RoIAlign of the stand-in: values, gradients, edges, against compiled operators."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from kd_detr_mmdet.mmcv_ops import roi_align as ours
from kd_detr_mmdet.mmcv_ops.stand_in import StandIn
from kd_detr_mmdet.mmcv_ops.torchvision_ops import torchvision_ops

# mmcv.ops has a function of the module's name in its place.
mmcv_roi_align = importlib.import_module("mmcv.ops.roi_align")

# Small whole numbers and fractions of two, so that nothing depends on rounding. The RoIs: inside;
# partly outside; wholly outside; of no size.
FEATURES = (torch.arange(40) * 7 % 16).float().view(2, 1, 4, 5) / 4 - 1
ROIS = torch.tensor([[0, 1, 1, 9, 7], [1, -6, -4, 5, 3], [0, 30, 30, 40, 36], [1, 3, 3, 3, 3.0]])
WEIGHTS = (torch.arange(16) * 5 % 8 + 1).float().view(4, 1, 2, 2) / 4

# Produced by the compiled CPU kernels of mmcv 2.3.6 from the inputs above, for 2 x 2 bins, a scale
# of 0.5 and (pool mode, sampling ratio, aligned); flat. The gradients are those of the features
# when WEIGHTS is the gradient of the output.
# fmt: off
OUTPUTS = {
    ("avg", 0, True):
        [0.625, 1.0625, 0.8125, 1.0, 0.0, 0.0, 0.0, 1.30816, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
         0.0],
    ("avg", 0, False):
        [0.6875, 1.4375, 0.265625, 1.140625, 0.333333, 0.484375, 0.78125, 1.359375, 0.0, 0.0, 0.0,
         0.0, 0.125, 0.0, -0.25, -0.375],
    ("avg", 3, True):
        [0.719907, 1.034722, 0.80787, 1.122685, 0.0, 0.0, 0.0, 1.305556, 0.0, 0.0, 0.0, 0.0, 0.5,
         0.5, 0.5, 0.5],
    ("avg", 3, False):
        [0.710648, 1.31713, 0.439815, 1.027778, 0.222222, 0.322917, 0.730324, 1.263889, 0.0, 0.0,
         0.0, 0.0, 0.125, 0.0, -0.25, -0.375],
    ("max", 0, True):
        [1.15625, 1.71875, 1.28125, 1.34375, 0.0, 0.0, 0.0, 2.421875, 0.0, 0.0, 0.0, 0.0, -10000,
         -10000, -10000, -10000],
    ("max", 0, False):
        [1.96875, 2.65625, 1.03125, 2.5, 2.0, 1.53125, 2.546875, 2.130208, 0.0, 0.0, 0.0, 0.0,
         0.125, 0.0, -0.25, -0.375],
    ("max", 3, True):
        [1.6875, 1.979166, 2.0625, 2.3125, 0.0, 0.0, 0.0, 2.53125, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5,
         0.5, 0.5],
    ("max", 3, False):
        [1.770833, 2.5625, 1.3125, 2.208333, 2.0, 1.53125, 2.46875, 2.0, 0.0, 0.0, 0.0, 0.0,
         0.597222, 0.388889, 0.25, 0.041667],
}
GRADIENTS = {
    ("avg", 0, True):
        [0.019531, 0.039062, 0.136719, 0.234375, 0.117188, 0.050781, 0.101562, 0.316406, 0.53125,
         0.265625, 0.121094, 0.242188, 0.457031, 0.671875, 0.335938, 0.058594, 0.117188, 0.214844,
         0.3125, 0.15625, 0.329427, 0.259549, 0.129774, 0.0, 0.0, 0.128906, 0.101562, 0.050781,
         0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ("avg", 0, False):
        [0.0, 0.007812, 0.007812, 0.046875, 0.046875, 0.0, 0.078125, 0.078125, 0.46875, 0.46875,
         0.0, 0.15625, 0.15625, 0.546875, 0.546875, 0.0, 0.257812, 0.257812, 0.6875, 0.6875,
         0.61849, 0.236979, 0.236979, 0.009115, 0.0, 0.476562, 0.28125, 0.53125, 0.039063, 0.0,
         0.026476, 0.573785, 2.542535, 0.281684, 0.0, 0.0, 0.109375, 0.515625, 0.0625, 0.0],
    ("max", 0, True):
        [0.0, 0.078125, 0.078125, 0.0, 0.0, 0.046875, 0.09375, 0.046875, 0.65625, 0.65625,
         0.328125, 0.328125, 0.375, 0.46875, 0.09375, 0.0, 0.0, 0.625, 0.625, 0.0, 0.4375, 0.0,
         0.0, 0.0, 0.0, 0.5625, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
         0.0],
    ("max", 0, False):
        [0.0, 0.0, 0.0, 0.0, 0.1875, 0.0, 0.09375, 0.0, 0.0, 1.3125, 0.0, 0.625, 0.0, 0.0, 0.0,
         0.0, 0.28125, 0.0, 2.0, 0.0, 1.645833, 0.104167, 0.0, 0.0, 0.0, 2.382812, 0.273438,
         0.328125, 0.03125, 0.0, 0.158854, 0.575521, 2.53125, 0.28125, 0.0, 0.0, 0.109375,
         0.515625, 0.0625, 0.0],
}
# fmt: on


@pytest.fixture
def own_code(monkeypatch):
    """Take our own code through mmcv's autograd function, whatever is installed."""
    monkeypatch.setattr(ours, "torchvision_ops", lambda: None)
    monkeypatch.setattr(mmcv_roi_align, "ext_module", ours)


def pool(features, rois, size=(2, 2), scale=0.5, ratio=0, mode="avg", aligned=True):
    return mmcv_roi_align.roi_align(features, rois, size, scale, ratio, mode, aligned)


def random_case(seed, dtype=torch.float32, count=9):
    """Features (2, 3, 7, 11) and RoIs (count, 5) that lie inside, across and outside the map."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 7, 11, generator=rng, dtype=dtype)
    corner = torch.rand(count, 2, generator=rng, dtype=dtype) * 40 - 8
    size = torch.rand(count, 2, generator=rng, dtype=dtype) * 40
    image = torch.randint(0, 2, (count, 1), generator=rng).to(dtype)
    return features, torch.cat((image, corner, corner + size), dim=1)


@pytest.mark.parametrize("case", OUTPUTS, ids=str)
def test_values_equal_mmcv(own_code, case):
    mode, ratio, aligned = case
    output = pool(FEATURES, ROIS, ratio=ratio, mode=mode, aligned=aligned)
    torch.testing.assert_close(output.flatten(), torch.tensor(OUTPUTS[case]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_gradients_equal_mmcv(own_code, case):
    mode, ratio, aligned = case
    features = FEATURES.clone().requires_grad_()
    pool(features, ROIS, ratio=ratio, mode=mode, aligned=aligned).backward(WEIGHTS)
    expected = torch.tensor(GRADIENTS[case])
    torch.testing.assert_close(features.grad.flatten(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_gradcheck(own_code, mode, ratio, aligned):
    features, rois = random_case(0, torch.float64, count=4)
    features = features[:, :1].clone().requires_grad_()

    def function(x):
        return pool(x, rois, (3, 2), 0.25, ratio, mode, aligned)

    assert torch.autograd.gradcheck(function, features)


def reference(name):
    if name == "torchvision":
        vision = torchvision_ops()
        if vision is None:
            pytest.skip("torchvision does not import")

        def function(x, rois, size, scale, ratio, mode, aligned):
            return vision.roi_align(x, rois, size, scale, ratio, aligned)

        return function
    if isinstance(sys.modules["mmcv._ext"], StandIn):
        pytest.skip("mmcv is not compiled")
    return mmcv_roi_align.roi_align


@pytest.mark.parametrize(
    ("name", "mode"), [("mmcv", "avg"), ("mmcv", "max"), ("torchvision", "avg")]
)
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_compiled_operator(request, name, mode, ratio, aligned):
    features, rois = random_case(1)
    args = (rois, (3, 4), 0.25, ratio, mode, aligned)
    weights = torch.randn(9, 3, 3, 4)
    results = []
    for function in (reference(name), pool):
        if function is pool:
            request.getfixturevalue("own_code")
        x = features.clone().requires_grad_()
        output = function(x, *args)
        output.backward(weights)
        results.append((output.detach(), x.grad))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_chunks_change_nothing(own_code, monkeypatch, mode):
    features, rois = random_case(2)
    results = []
    chunks = []
    samples = ours._samples
    monkeypatch.setattr(ours, "_samples", lambda *a: (chunks.append(p) or p for p in samples(*a)))
    for chunk_size in (ours.CHUNK_SIZE, 60):
        monkeypatch.setattr(ours, "CHUNK_SIZE", chunk_size)
        x = features.clone().requires_grad_()
        output = pool(x, rois, scale=0.25, mode=mode)
        output.square().sum().backward()
        results.append((output.detach(), x.grad))
    assert len(chunks) > 6
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_half_precision_is_float32_rounded_at_the_end(own_code, dtype, mode):
    features, rois = random_case(3)
    features, rois = features.to(dtype), rois.to(dtype)
    full = features.float().requires_grad_()
    expected = pool(full, rois.float(), scale=0.25, mode=mode)
    features.requires_grad_()
    output = pool(features, rois, scale=0.25, mode=mode)
    assert output.dtype == dtype
    assert torch.equal(output, expected.to(dtype))
    output.sum().backward()
    assert features.grad.dtype == dtype
    if mode == "avg":  # mmcv keeps the maximum's position in half precision too
        expected.sum().backward()
        assert torch.equal(features.grad, full.grad.to(dtype))


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_no_rois(own_code, mode):
    features = FEATURES.clone().requires_grad_()
    output = pool(features, torch.zeros(0, 5), (7, 7), mode=mode)
    assert output.shape == (0, 1, 7, 7)
    output.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(FEATURES))


def test_a_roi_of_negative_size_has_no_samples(own_code):
    """It pools zeros, and changes neither its neighbours' values nor any gradient."""
    image = torch.arange(64.0).view(1, 1, 8, 8).requires_grad_()
    inverted, whole = [0, 5.0, 5.0, 1.0, 1.0], [0, 1.0, 1.0, 5.0, 5.0]
    pooled = pool(image, torch.tensor([inverted, whole, inverted]), (1, 1), scale=1.0)
    # Samples of the whole one lie at 1, 2, 3 and 4 in both directions.
    assert pooled.flatten().tolist() == [0.0, 2.5 * 8 + 2.5, 0.0]
    pooled.sum().backward()
    assert image.grad[0, 0, 1:5, 1:5].eq(1 / 16).all()
    assert image.grad.sum() == 1


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_strided_features(own_code, mode):
    features, rois = random_case(4)
    strided = features.to(memory_format=torch.channels_last)
    expected = pool(features, rois, scale=0.25, mode=mode)
    assert torch.equal(pool(strided, rois, scale=0.25, mode=mode), expected)


def test_torchvision_is_taken_for_the_average_only(monkeypatch):
    seen = []

    def mean_of_image(x, rois, size, *args):  # any differentiable function will do
        seen.append((x.dtype, rois.dtype, size, *args))
        mean = x.mean(dim=(2, 3))[rois[:, 0].long()]
        return mean[:, :, None, None].expand(-1, -1, *size)

    monkeypatch.setattr(ours, "torchvision_ops", lambda: SimpleNamespace(roi_align=mean_of_image))
    monkeypatch.setattr(mmcv_roi_align, "ext_module", ours)
    features = FEATURES.half().requires_grad_()
    output = pool(features, ROIS.half(), ratio=3, aligned=False)
    output.sum().backward()
    assert seen == 2 * [(torch.float32, torch.float32, (2, 2), 0.5, 3, False)]
    assert torch.allclose(output[1].float(), FEATURES[1].mean(), atol=1e-3)
    assert torch.allclose(features.grad.float(), torch.tensor(2 * 4 / 20), atol=1e-3)

    output = pool(FEATURES, ROIS, mode="max")
    expected = torch.tensor(OUTPUTS["max", 0, True])
    torch.testing.assert_close(output.flatten(), expected, atol=2e-6, rtol=0)
