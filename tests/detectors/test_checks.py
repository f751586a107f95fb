"""What cannot be distilled is refused when it is built, and said why."""

import pytest
import torch
from conftest import build, dino_config, refused, teacher_of, two_stage_config
from mmdet.registry import MODELS

from kd_detr_mmdet import RebalancedDistillLoss
from kd_detr_mmdet.utils.errors import ConfigError


def test_other_number_of_classes(kd_config):
    message = refused(kd_config(teacher=teacher_of(num_classes=7)))
    assert "student scores 4" in message
    assert "teacher 7" in message
    assert "bbox_head.num_classes" in message


def test_every_set_without_weight(kd_config):
    sets = dict(general=0, specific=0.0)
    assert "set_weights leaves nothing to distil" in refused(
        kd_config(distill_loss=dict(set_weights=sets))
    )
    # Of the sets that there are: a set that is not named counts fully.
    only = dict(distill_loss=dict(set_weights=dict(general=0)))
    MODELS.build(kd_config(**only))
    refused(kd_config(points=dict(specific=False), **only))


def test_layers_one_to_one_of_other_depth(kd_config):
    layers = dict(layers="one_to_one")
    message = refused(kd_config(distill_loss=layers))
    assert "distill_loss.layers='one_to_one'" in message
    assert "student has 2" in message
    assert "teacher 3" in message
    assert "layers='last'" in message
    MODELS.build(kd_config(distill_loss=layers, teacher=teacher_of(decoder_layers=2)))


@pytest.mark.parametrize(
    "student, options, told",
    [
        (two_stage_config(), dict(class_term="softmax"), "class_term and temperature change noth"),
        (two_stage_config(), dict(temperature=4.0), "class_term and temperature change nothing"),
        (dino_config(), dict(class_bridge="binary"), "class_bridge changes nothing"),
    ],
)
def test_class_options_that_change_nothing_are_refused(student, options, told, kd_config):
    with pytest.raises(ConfigError, match=told):
        build(kd_config(student=student, distill_loss=options))


class LearntLoss(RebalancedDistillLoss):
    def __init__(self, persistent=True, **options):
        super().__init__(**options)
        self.register_buffer("mean_weight", torch.zeros(()), persistent=persistent)


def test_a_loss_whose_weights_no_checkpoint_would_keep_is_refused(kd_config):
    loss = dict(type=LearntLoss)
    with pytest.raises(ConfigError, match="LearntLoss has weights of its own .*mean_weight"):
        build(kd_config(distill_loss=loss))
    build(kd_config(distill_loss=dict(loss, persistent=False)))


@pytest.mark.parametrize(
    "student, option, silent, other",
    [
        (dino_config, "class_term", "softmax", "bernoulli"),
        (two_stage_config, "class_bridge", "foreground", "posterior"),
    ],
)
def test_a_class_term_that_is_silent_with_one_class_is_refused(
    student, option, silent, other, kd_config
):
    def make(classes=1, **loss):
        teacher = teacher_of(num_classes=classes)
        return build(
            kd_config(student=student(num_classes=classes), teacher=teacher, distill_loss=loss)
        )

    with pytest.raises(ConfigError, match=f"distill_loss.{option}='{silent}' .* '{other}'"):
        make(**{option: silent})
    make(**{option: other})
    make(**{option: silent}, cls_weight=0)
    make(classes=2, **{option: silent})
