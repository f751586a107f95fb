"""The stand-in for mmcv's compiled operators as a module, and its smaller operators."""

import importlib.util
import sys

import mmcv
import pytest
import torch
from mmcv.ops import focal_loss as mmcv_focal_loss
from mmcv.ops import multi_scale_deform_attn as mmcv_attention
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

from kd_detr_mmdet.mmcv_ops import (
    deformable_attention,
    focal_loss,
    operator_sources,
    provide_mmcv_ops,
    stand_in,
    torchvision_ops,
)

OWN = "kd_detr_mmdet (PyTorch)"


@pytest.fixture
def no_extension(monkeypatch):
    """mmcv as installed without compiled operators and not yet provided for."""
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.delattr(mmcv, "_ext", raising=False)
    monkeypatch.setattr(mmcv, "__path__", [p for p in mmcv.__path__ if "compiled" in p])
    yield
    vars(mmcv).pop("_ext", None)  # the import system sets it


@pytest.fixture
def no_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    torchvision_ops.torchvision_ops.cache_clear()
    yield
    torchvision_ops.torchvision_ops.cache_clear()


@pytest.fixture
def extension(no_extension):
    provide_mmcv_ops()
    return sys.modules["mmcv._ext"]


def put_extension(tmp_path, monkeypatch, code):
    (tmp_path / "_ext.py").write_text(code)
    monkeypatch.setattr(mmcv, "__path__", [str(tmp_path)])


def test_compiled_operators_are_used_untouched(no_extension, tmp_path, monkeypatch):
    put_extension(tmp_path, monkeypatch, "nms = 'compiled'\n")
    provide_mmcv_ops()
    assert sys.modules["mmcv._ext"].nms == "compiled"
    assert not hasattr(sys.modules["mmcv._ext"], "roi_align_forward")
    assert set(operator_sources().values()) == {"compiled mmcv"}


def test_compiled_operators_that_do_not_load(no_extension, tmp_path, monkeypatch):
    put_extension(tmp_path, monkeypatch, "raise ImportError('undefined symbol: at_something')\n")
    provide_mmcv_ops()
    assert isinstance(sys.modules["mmcv._ext"], stand_in.StandIn)
    assert "undefined symbol: at_something" in operator_sources()["others"]
    with pytest.raises(NotImplementedError, match="undefined symbol: at_something"):
        sys.modules["mmcv._ext"].softnms()


def test_second_call_changes_nothing(extension):
    provide_mmcv_ops()
    assert sys.modules["mmcv._ext"] is extension


def test_without_mmcv(no_extension, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv", None)
    with pytest.raises(ImportError, match=r"mmcv is not installed.*pip install -r requirements"):
        provide_mmcv_ops()


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [("onedl-mmcv", "compile mmcv .*pip install"), ("mmcv-lite", "compiled for this PyTorch$")],
)
def test_missing_operator_raises_when_called(extension, monkeypatch, installed, remedy):
    def version(name):
        if name != installed:
            raise stand_in.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(stand_in.metadata, "version", version)
    operator = extension.deform_conv_forward  # having it must not raise
    assert operator.__name__ == "deform_conv_forward"
    with pytest.raises(NotImplementedError, match=f"'deform_conv_forward'.*{remedy}"):
        operator(torch.zeros(1), groups=1)


def test_python_may_inspect_the_module(extension):
    assert importlib.util.find_spec("mmcv._ext").name == "mmcv._ext"
    assert importlib.import_module("mmcv._ext") is extension
    for name in ("__path__", "__wrapped__", "__file__", "_ipython_display_"):
        assert not hasattr(extension, name)


def test_environment_report_says_not_compiled(extension, monkeypatch):
    monkeypatch.setattr("mmcv.ops.info.ext_module", extension)
    monkeypatch.setattr("mmcv.utils.env.mmengine_collect_env", dict)  # slow, and not our matter
    report = mmcv.utils.collect_env()
    assert report["MMCV Compiler"] == report["MMCV CUDA Compiler"] == "not compiled"
    assert not mmcv.utils.ext_loader.check_ops_exist()


def test_sources_without_torchvision(extension, no_torchvision):
    sources = operator_sources()
    assert sources.pop("others").startswith("missing: ")
    assert sources == dict.fromkeys(
        ("nms", "roi_align", "ms_deform_attn", "sigmoid_focal_loss"), OWN
    )


@pytest.mark.parametrize("works", [True, False])
def test_torchvision_counts_only_where_it_imports(
    extension, no_torchvision, tmp_path, monkeypatch, works
):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "" if works else "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (tmp_path / "torchvision" / "ops.py").touch()
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.syspath_prepend(tmp_path)
    sources = operator_sources()
    for name in ("torchvision", "torchvision.ops"):
        sys.modules.pop(name, None)
    assert sources["nms"] == sources["roi_align"] == ("torchvision" if works else OWN)
    assert sources["ms_deform_attn"] == OWN


def test_deformable_attention(monkeypatch):
    monkeypatch.setattr(mmcv_attention, "ext_module", deformable_attention)
    torch.manual_seed(0)
    shapes = torch.tensor([[4, 5], [2, 3]])
    start = torch.tensor([0, 20])
    inputs = (
        torch.randn(2, 26, 2, 3),
        torch.rand(2, 7, 2, 2, 4, 2) * 1.4 - 0.2,  # some points lie outside the image
        torch.rand(2, 7, 2, 2, 4),
    )
    weights = torch.randn(2, 7, 6)

    def run(function):
        value, locations, attention = (t.clone().requires_grad_() for t in inputs)
        output = function(value, locations, attention)
        output.backward(weights)
        return output.detach(), value.grad, locations.grad, attention.grad

    through_operator = run(
        lambda v, loc, att: mmcv_attention.MultiScaleDeformableAttnFunction.apply(
            v, shapes, start, loc, att, 64
        )
    )
    through_autograd = run(
        lambda v, loc, att: mmcv_attention.multi_scale_deformable_attn_pytorch(v, shapes, loc, att)
    )
    assert all(t.abs().sum() > 0 for t in through_operator)
    torch.testing.assert_close(through_operator, through_autograd, atol=0, rtol=0)


@pytest.fixture
def operator_focal_loss(monkeypatch):
    monkeypatch.setattr(mmcv_focal_loss, "ext_module", focal_loss)
    return mmcv_focal_loss.sigmoid_focal_loss


LOGITS = torch.linspace(-8, 8, 20).view(5, 4)
TARGETS = torch.tensor([0, 3, 4, 1, 4])  # 4 is background


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.6), (0.0, 0.25)])
def test_focal_loss_equals_mmdet(operator_focal_loss, gamma, alpha):
    weights = torch.arange(1.0, 21).view(5, 4)
    results = []
    one_hot = torch.nn.functional.one_hot(TARGETS, 5)[:, :4]
    for function in (
        lambda x: operator_focal_loss(x, TARGETS, gamma, alpha, None, "none"),
        lambda x: py_sigmoid_focal_loss(x, one_hot, gamma=gamma, alpha=alpha, reduction="none"),
    ):
        x = LOGITS.clone().requires_grad_()
        loss = function(x)
        loss.backward(weights)
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-3)


def test_focal_loss_gradcheck(operator_focal_loss):
    x = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: operator_focal_loss(x, TARGETS, 2.0, 0.25, None, "mean"), x
    )


def test_focal_loss_weighs_rows_by_their_class(operator_focal_loss):
    weight = torch.tensor([2.0, 3.0, 5.0, 7.0])
    rows = torch.tensor([2.0, 7.0, 1.0, 3.0, 1.0])[:, None]
    x, y = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    weighted = operator_focal_loss(x, TARGETS, 2.0, 0.25, weight, "none")
    plain = operator_focal_loss(y, TARGETS, 2.0, 0.25, None, "none")
    assert torch.allclose(weighted, plain * rows)
    weighted.sum().backward()
    plain.sum().backward()
    assert torch.allclose(x.grad, y.grad * rows)


def test_focal_loss_clamps_probabilities_at_flt_min(operator_focal_loss):
    x = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = operator_focal_loss(x, torch.tensor([0]), 2.0, 0.25, None, "none")
    # log(FLT_MIN) = -87.3365: 0.25 and 0.75 of it, where cross entropy would be 200.
    torch.testing.assert_close(loss, torch.tensor([[21.834135, 65.502404]]))
    loss.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[-0.25, 0.75]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_focal_loss_half_precision(operator_focal_loss, dtype):
    half = LOGITS.to(dtype)
    loss = operator_focal_loss(half, TARGETS, 2.0, 0.25, None, "none")
    expected = operator_focal_loss(half.float(), TARGETS, 2.0, 0.25, None, "none")
    assert torch.equal(loss, expected.to(dtype))


def test_focal_loss_without_rows(operator_focal_loss):
    x = torch.zeros(0, 4, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.long)
    operator_focal_loss(x, targets, 2.0, 0.25, None, "sum").backward()
    assert x.grad.shape == (0, 4)
