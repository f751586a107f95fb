"""OfficialWeightsHook: a zoo's DINO, named by load_from or student.checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from conftest import build, ddq_config, dino_config
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from kd_detr_mmdet.detectors.inherit import start_from
from kd_detr_mmdet.families.dino import from_official
from kd_detr_mmdet.hooks import OfficialWeightsHook
from kd_detr_mmdet.utils.errors import ConfigError

KEY = "decoder.ref_point_head.layers.0.weight"


@pytest.fixture
def official():
    """Weights as the official mmdet has them, and a detector of this one."""
    detector = build(dino_config(width=256))
    weights = detector.state_dict()
    if weights[KEY].shape != (256, 1024):
        pytest.skip("this is the official mmdet")
    return {**weights, KEY: torch.randn(256, 512)}, detector


@pytest.mark.parametrize("distilled", [False, True])
def test_load_from_fits_the_layer_that_reads_boxes(official, kd_config, distilled):
    weights, detector = official
    model = build(kd_config(student=dino_config(width=256))) if distilled else detector
    checkpoint = dict(state_dict=dict(weights), meta={})
    runner = SimpleNamespace(model=model, _resume=False)
    OfficialWeightsHook().after_load_checkpoint(runner, checkpoint)
    _load_checkpoint_to_model(model, checkpoint)  # as the Runner goes on
    assert torch.equal(model.state_dict()[KEY], from_official(weights, detector)[KEY])


def test_a_student_starts_from_it(official, tmp_path):
    weights, detector = official
    torch.save(dict(state_dict=weights), tmp_path / "zoo.pth")
    start_from(detector, tmp_path / "zoo.pth")
    assert torch.equal(detector.state_dict()[KEY], from_official(weights, detector)[KEY])


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("other", ["wider", "deeper", "shallower"])
def test_resuming_needs_the_very_same_weights(kd_config, other, distilled):
    """MMEngine would go on with random weights where shapes differ, and a line in the log."""
    model = build(kd_config(student=dino_config())) if distilled else build(dino_config())
    foreign = dict(
        wider=dino_config(width=64),
        deeper=dino_config(decoder_layers=3),
        shallower=dino_config(decoder_layers=1),
    )[other]
    hook, runner = OfficialWeightsHook(), SimpleNamespace(model=model, _resume=True)
    hook.after_load_checkpoint(runner, dict(state_dict=dict(model.state_dict())))
    checkpoint = dict(state_dict=build(foreign).state_dict())
    with pytest.raises(ConfigError, match="--resume: .* of another model: .*set load_from"):
        hook.after_load_checkpoint(runner, checkpoint)
    # As a start it is MMEngine's own affair.
    hook.after_load_checkpoint(SimpleNamespace(model=model, _resume=False), checkpoint)


def test_a_ddq_detr_that_has_trained_is_resumed_by_one_that_has_not(batch):
    """mmdet's saves some weights by a second name from its first step on."""
    trained, fresh = build(ddq_config()).train(), build(ddq_config())
    trained(**batch(trained), mode="loss")
    weights = trained.state_dict()
    assert weights.keys() > fresh.state_dict().keys()
    runner = SimpleNamespace(model=fresh, _resume=True)
    OfficialWeightsHook().after_load_checkpoint(runner, dict(state_dict=weights))


@pytest.mark.parametrize("content", [dict(state_dict=None), {}])
def test_a_checkpoint_without_weights_is_left_alone(content):
    before = dict(content)
    OfficialWeightsHook().after_load_checkpoint(
        SimpleNamespace(model=build(dino_config())), content
    )
    assert content == before
