"""What a student inherits: the teacher's weights where they fit, told and nothing else."""

import logging

import pytest
import torch
from conftest import TEACHER, build, dino_config
from mmdet.registry import MODELS
from mmengine.logging import MMLogger

from kd_detr_mmdet.detectors.inherit import inherit_weights
from kd_detr_mmdet.utils import ConfigError


@pytest.fixture
def pair():
    """A student of 2 decoder layers and a teacher of 3, whose weights are all 7."""
    student, teacher = build(dino_config(levels=3)), build(dino_config(**TEACHER))
    for value in teacher.state_dict().values():
        value.fill_(7)
    return student, teacher


@pytest.fixture
def told():
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    yield messages
    MMLogger.get_current_instance().removeHandler(handler)


def sevens(module):
    return {name for name, value in module.state_dict().items() if (value == 7).all()}


def test_named_parts_and_no_others(pair, told):
    student, teacher = pair
    assert not sevens(student)
    inherit_weights(student, teacher, ["encoder", "decoder.layers.0"])
    assert sevens(student.encoder) == set(student.encoder.state_dict())
    assert sevens(student) == {
        name for name in student.state_dict() if name.startswith(("encoder.", "decoder.layers.0."))
    }
    count = len(student.encoder.state_dict())
    assert f"inherited from the teacher: encoder: {count} taken" in told


def test_other_shapes_stay_and_are_told(pair, told):
    student, teacher = pair
    before = student.query_embedding.weight.clone()
    with pytest.raises(ConfigError, match="'query_embedding' can take nothing.*1 of another shape"):
        inherit_weights(student, teacher, ["query_embedding"])
    assert torch.equal(student.query_embedding.weight, before)  # 12 queries here, 16 there


def test_the_encoders_head_comes_from_the_encoders_head(pair):
    student, teacher = pair
    for number, branch in enumerate(teacher.bbox_head.cls_branches):
        branch.bias.data.fill_(number)
    inherit_weights(student, teacher, ["bbox_head"])
    # Decoder layers 0 and 1 of 3; then the encoder's, which is the teacher's number 3.
    assert [branch.bias[0].item() for branch in student.bbox_head.cls_branches] == [0, 1, 3]


def test_a_distillation_inherits_when_weights_are_initialised(kd_config):
    cfg = kd_config(student=dino_config(levels=3), inherit=["encoder"])
    kd = MODELS.build(cfg)
    teacher = kd.teacher.encoder.state_dict()
    assert any(not torch.equal(v, teacher[k]) for k, v in kd.student.encoder.state_dict().items())
    kd.init_weights()
    for name, value in kd.student.encoder.state_dict().items():
        assert torch.equal(value, teacher[name])
        assert value.data_ptr() != teacher[name].data_ptr()  # a copy: the teacher stays frozen


@pytest.mark.parametrize(
    "inherit, named",
    [(["encoders"], "no such part"), ("encoder", "must be a list"), (["enc"], "no such part")],
)
def test_what_cannot_be_inherited(kd_config, inherit, named):
    with pytest.raises(ConfigError, match=named):
        MODELS.build(kd_config(inherit=inherit)).init_weights()
