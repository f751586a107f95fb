"""OfficialWeightsHook: a zoo's DINO, named by load_from or student.checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from conftest import build, dino_config
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from kd_detr_mmdet.detectors.inherit import start_from
from kd_detr_mmdet.families.dino import from_official
from kd_detr_mmdet.hooks import OfficialWeightsHook

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
    OfficialWeightsHook().after_load_checkpoint(SimpleNamespace(model=model), checkpoint)
    _load_checkpoint_to_model(model, checkpoint)  # as the Runner goes on
    assert torch.equal(model.state_dict()[KEY], from_official(weights, detector)[KEY])


def test_a_student_starts_from_it(official, tmp_path):
    weights, detector = official
    torch.save(dict(state_dict=weights), tmp_path / "zoo.pth")
    start_from(detector, tmp_path / "zoo.pth")
    assert torch.equal(detector.state_dict()[KEY], from_official(weights, detector)[KEY])


@pytest.mark.parametrize("content", [dict(state_dict=None), {}])
def test_a_checkpoint_without_weights_is_left_alone(content):
    before = dict(content)
    OfficialWeightsHook().after_load_checkpoint(
        SimpleNamespace(model=build(dino_config())), content
    )
    assert content == before
