"""What a student inherits: the teacher's weights where they fit, told and nothing else."""

import logging
import re

import pytest
import torch
from conftest import DINO_WIDTH, TEACHER, build, ddq_config, dino_config, random_checkpoint
from mmdet.registry import MODELS
from mmengine.logging import MMLogger

from kd_detr_mmdet.detectors.inherit import inherit_weights
from kd_detr_mmdet.utils.configs import model_config
from kd_detr_mmdet.utils.errors import ConfigError


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


def test_the_head_of_dense_queries_comes_from_that_head():
    """DDQ-DETR's heads: one for each decoder layer, the encoder's, that of dense queries."""
    student, teacher = build(ddq_config(levels=3)), build(ddq_config(**TEACHER))
    for number, branch in enumerate(teacher.bbox_head.cls_branches):
        branch.bias.data.fill_(number)
    inherit_weights(student, teacher, ["bbox_head"])
    assert [branch.bias[0].item() for branch in student.bbox_head.cls_branches] == [0, 1, 3, 4]
    # A DINO has none for dense queries.
    student, teacher = build(ddq_config(levels=3)), build(dino_config(**TEACHER))
    own = student.bbox_head.cls_branches[3].bias.clone()
    for branch in teacher.bbox_head.cls_branches:
        branch.bias.data.fill_(7)
    inherit_weights(student, teacher, ["bbox_head"])
    assert torch.equal(student.bbox_head.cls_branches[3].bias, own)
    assert (student.bbox_head.cls_branches[2].bias == 7).all()


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


# student=dict(config=..., checkpoint=...)


@pytest.fixture
def started(kd_config, tmp_path):
    """Makes a distillation whose student starts from a random detector; both, initialised."""

    def make(source, student=None, **more):
        checkpoint = random_checkpoint(tmp_path / "start.pth", source)
        start = dict(config=student or dino_config(), checkpoint=checkpoint)
        kd = build(kd_config(student=start, **more))
        return kd, torch.load(checkpoint, weights_only=True)["state_dict"]

    return make


def test_a_student_starts_from_a_checkpoint(started, told):
    kd, weights = started(dino_config())
    state = kd.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert sum("student.checkpoint" in m and f"{len(state)} taken" in m for m in told) == 1


def test_a_head_for_other_classes_stays_and_is_told(started, told):
    kd, weights = started(dino_config(num_classes=7))
    state = kd.state_dict()
    fits = [name for name, value in weights.items() if value.shape == state[name].shape]
    assert len(fits) > 150 and all(torch.equal(state[name], weights[name]) for name in fits)
    assert state["bbox_head.cls_branches.0.bias"].shape == (4,)
    line = next(m for m in told if "student.checkpoint" in m)
    assert "of another shape: " in line
    told = f"bbox_head.cls_branches.0.weight (7, {DINO_WIDTH}) instead of (4, {DINO_WIDTH})"
    assert told in line


def test_what_only_one_side_has_is_told(started, told):
    started(dino_config(decoder_layers=1), dino_config(decoder_layers=2))
    line = next(m for m in told if "student.checkpoint" in m)
    assert "not in the file: " in line and "bbox_head.reg_branches.2." in line
    assert re.search(r", and \d+ more", line)  # the list is cut
    told.clear()
    started(dino_config(decoder_layers=2), dino_config(decoder_layers=1))
    line = next(m for m in told if "student.checkpoint" in m)
    assert "of the file not in the student: " in line and "bbox_head.reg_branches.2." in line


def test_what_is_inherited_is_the_teachers(started):
    kd, weights = started(dino_config(levels=3), dino_config(levels=3), inherit=["encoder"])
    state, teacher = kd.state_dict(), kd.teacher.state_dict()
    for name, value in state.items():
        source = teacher if name.startswith("encoder.") else weights
        assert torch.equal(value, source[name]), name


def test_nothing_in_common_is_an_error(kd_config, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(2)}, path)
    start = dict(config=dino_config(), checkpoint=str(path))
    with pytest.raises(ConfigError, match="student.checkpoint .*other.pth.* holds nothing.*conv1"):
        MODELS.build(kd_config(student=start)).init_weights()
    with pytest.raises(ConfigError, match="student.checkpoint: no file"):
        MODELS.build(kd_config(student=dict(start, checkpoint="none.pth"))).init_weights()


@pytest.mark.parametrize("options", [dict(checkpont="x.pth"), dict(checkpoint=3)])
def test_other_options_beside_the_students_config(kd_config, options):
    with pytest.raises(ConfigError, match="student must be a config, or dict"):
        MODELS.build(kd_config(student=dict(config=dino_config(), **options)))


def test_a_config_beside_a_checkpoint_is_the_students_everywhere(kd_config):
    whole = dict(model=kd_config(student=dict(config=dino_config(), checkpoint="none.pth")))
    assert model_config(whole) == dino_config()  # which is what tools/test.py builds
