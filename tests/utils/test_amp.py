"""Mixed precision: every family trains in it, and what must not lose digits stays in float32."""

import copy

import pytest
import torch
from conftest import FAMILY_CONFIGS, dino_config, noisy, two_stage_config
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch.nn import functional as F

from kd_detr_mmdet import QueryPairing
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.utils import ConfigError
from kd_detr_mmdet.utils.amp import use_amp

TWO_STAGE = ("faster_rcnn", "cascade_rcnn", "mask_rcnn")
STUDENTS = {**FAMILY_CONFIGS, **{kind: two_stage_config(kind) for kind in TWO_STAGE}}
ADAMW = dict(optimizer=dict(type="AdamW", lr=1e-4), clip_grad=dict(max_norm=0.1))
# Plain mmdet's DDQ-DETR does not train in mixed precision, so there is nothing to compare with.
PLAIN_FAILS = ("ddq",)


def in_amp(dtype):
    """``optim_wrapper`` as ``tools/train.py --amp`` makes it."""
    # With MMEngine's first loss scale, 65,536, float16's gradients overflow in the first steps.
    scale = dict(loss_scale=1024.0) if dtype == "float16" else {}
    cfg = Config(dict(optim_wrapper=dict(copy.deepcopy(ADAMW), **scale)))
    use_amp(cfg, dtype)
    return cfg.optim_wrapper


def one_step(model, data, optim_wrapper, device="cpu"):
    """Losses of a training step as MMEngine does it; gradients stay in the parameters."""
    model = model.to(device).train()
    wrapper = build_optim_wrapper(model, copy.deepcopy(optim_wrapper))
    torch.manual_seed(0)
    with wrapper.optim_context(model):
        losses = model(**model.data_preprocessor(copy.deepcopy(data), True), mode="loss")
    total, logged = model.parse_losses(losses)
    wrapper.backward(wrapper.scale_loss(total))
    before = [p.detach().clone() for p in model.parameters()]
    wrapper.step()
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before)]
    return losses, total, sum(moved) / len(moved)


def inputs(name):
    shapes = [[3, 64, 96], [3, 48, 80]]
    return demo_mm_inputs(2, shapes, num_items=[3, 2], num_classes=4, with_mask=name == "mask_rcnn")


def distillation(name, pair):
    return pair(STUDENTS[name], dino_config() if name in TWO_STAGE else STUDENTS[name])


def assert_whole_step(kd, total, moved):
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in kd.parameters() if p.grad is not None)
    assert moved > 0.9


def assert_trains(name, pair, dtype, device):
    kd, plain = distillation(name, pair), noisy(STUDENTS[name], seed=2)
    kd.load_state_dict(plain.state_dict())
    data = inputs(name)
    losses, total, moved = one_step(kd, data, in_amp(dtype), device)
    assert total.dtype == torch.float32
    ours = {term: value for term, value in losses.items() if "kd_loss" in term}
    assert len(ours) >= 6
    assert {value.dtype for value in ours.values()} == {torch.float32}
    assert {p.dtype for p in kd.parameters()} == {torch.float32}
    assert_whole_step(kd, total, moved)
    if name not in PLAIN_FAILS:
        expected, _, _ = one_step(plain, data, in_amp(dtype), device)
        for term, value in expected.items():
            values, others = ([v] if torch.is_tensor(v) else v for v in (value, losses[term]))
            assert all(map(torch.equal, values, others)), term


@pytest.mark.parametrize("name", STUDENTS)
def test_every_family_trains_in_bfloat16_on_a_cpu(name, pair):
    assert_trains(name, pair, "bfloat16", "cpu")


@pytest.mark.parametrize("name", STUDENTS)
def test_no_family_overflows_in_float16(name, pair):
    kd = distillation(name, pair)
    with torch.autocast("cpu", torch.float16):
        _, total, moved = one_step(kd, inputs(name), ADAMW)
    assert_whole_step(kd, total, moved)


def test_dense_queries_lose_nothing_in_half_precision(pair, monkeypatch):
    """A GPU refuses the cross entropy of probabilities wherever autocast is on, as for mmdet's."""
    kd = distillation("ddq", pair)
    seen = []
    monkeypatch.setattr(
        F,
        "binary_cross_entropy",
        lambda scores, *args, entropy=F.binary_cross_entropy, **kwargs: (
            seen.append((torch.is_autocast_enabled("cpu"), scores.dtype))
            or entropy(scores, *args, **kwargs)
        ),
    )
    one_step(kd, inputs("ddq"), in_amp("bfloat16"))
    assert set(seen) == {(False, torch.float32)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", STUDENTS)
def test_every_family_trains_on_a_gpu(name, pair, dtype):
    assert_trains(name, pair, dtype, "cuda")


def test_the_student_computes_in_bfloat16(pair):
    kd = pair(FAMILY_CONFIGS["dino"], FAMILY_CONFIGS["dino"])
    seen = {}
    for part in (kd.student.neck, kd.teacher.neck):
        part.register_forward_hook(lambda m, _, out: seen.update({id(m): out[0].dtype}))
    data = demo_mm_inputs(2, [[3, 64, 96]] * 2, num_items=[3, 2], num_classes=4)
    one_step(kd, data, in_amp("bfloat16"))
    assert set(seen.values()) == {torch.bfloat16}


@pytest.mark.parametrize("strategy", ["similar_general", "hungarian", "inconsistent"])
def test_queries_are_matched_and_mixed_in_float32(strategy, pair, batch):
    kd = pair(FAMILY_CONFIGS["dino"], FAMILY_CONFIGS["dino"])
    samples = batch(kd)["data_samples"]
    generator = torch.Generator().manual_seed(0)
    answers = [
        Answer(
            torch.randn(2, 2, 12, 4, generator=generator),
            torch.rand(2, 2, 12, 4, generator=generator),
        )
        for _ in range(2)
    ]
    pairing = QueryPairing(strategy)
    expected = pairing(*answers, samples)[strategy]
    with torch.autocast("cpu", torch.bfloat16):
        found = pairing(*answers, samples)[strategy]
    for ours, theirs in zip(found[:2], expected[:2]):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.cls_scores, theirs.cls_scores)


def test_configs_of_both_precisions(monkeypatch):
    amp = dict(ADAMW, type="AmpOptimWrapper", loss_scale="dynamic", dtype="bfloat16")
    cfg = Config(dict(optim_wrapper=copy.deepcopy(amp)))
    use_amp(cfg, "bfloat16")
    assert cfg.optim_wrapper == dict(ADAMW, type="BFloat16OptimWrapper")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    cfg = Config(dict(optim_wrapper=dict(ADAMW, loss_scale=512.0)))
    use_amp(cfg, "float16")
    assert cfg.optim_wrapper == dict(
        ADAMW, type="AmpOptimWrapper", loss_scale=512.0, dtype="float16"
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="--amp bfloat16"):
        use_amp(cfg, "float16")
