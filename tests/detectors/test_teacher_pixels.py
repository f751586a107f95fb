"""The teacher sees images as in its own training: against MMDetection's own preprocessing."""

import copy

import pytest
import torch
from conftest import TEACHER, build, dino_config, random_checkpoint, two_stage_config
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.model import BaseDataPreprocessor

from kd_detr_mmdet.detectors.teacher import TeacherPixels
from kd_detr_mmdet.utils import ConfigError

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
RGB = dict(mean=MEAN, std=STD, bgr_to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
RAW = dict()
SHAPES = [[3, 64, 96], [3, 48, 80]]


def preprocessor(**options):
    return MODELS.build(dict(type="DetDataPreprocessor", pad_size_divisor=32, **options))


def raw_images():
    """Images as a data loader brings them: uint8, of two sizes."""
    return demo_mm_inputs(2, SHAPES, num_items=[3, 2], num_classes=4)


def both(ours, theirs):
    """The student's images, what the teacher is given, and what its own preprocessor makes."""
    ours, theirs = (preprocessor(**options) for options in (ours, theirs))
    seen, expected = (p(raw_images(), True) for p in (ours, theirs))
    before = seen["inputs"].clone()
    given = TeacherPixels(ours, theirs)(seen["inputs"], seen["data_samples"])
    assert torch.equal(seen["inputs"], before)  # the student's images stay as they are
    return seen["inputs"], given, expected["inputs"]


@pytest.mark.parametrize(
    "options",
    [
        RGB,
        CAFFE,
        RAW,
        dict(RGB, pad_value=7),
        dict(mean=[0, 0, 0], std=[255, 255, 255]),
        dict(mean=[100.0], std=[50.0]),
    ],
)
def test_equal_preprocessors_give_the_very_same_tensor(options):
    ours, given, expected = both(options, copy.deepcopy(options))
    assert given is ours and torch.equal(ours, expected)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        # No normalisation is a mean of 0 and a standard deviation of 1.
        (RAW, dict(mean=[0.0] * 3, std=[1.0] * 3)),
        # Both turn the colours around, whatever they call it.
        (RGB, dict(mean=MEAN, std=STD, rgb_to_bgr=True)),
        # How far batches are padded is the student's choice.
        (RGB, dict(RGB, pad_mask=True)),
    ],
)
def test_preprocessors_that_do_the_same_give_the_very_same_tensor(ours, theirs):
    ours, given, expected = both(ours, theirs)
    assert given is ours and torch.equal(ours, expected)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (RGB, dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True)),
        (RGB, dict(mean=[127, 128, 129], std=[50, 60, 70], bgr_to_rgb=True)),
        (RGB, dict(mean=MEAN, std=STD)),  # the same numbers for other colours
        (RGB, dict(mean=MEAN[::-1], std=STD[::-1])),  # the same colours in another order
        (RGB, CAFFE),
        (CAFFE, RGB),
        (RGB, RAW),
        (RAW, RGB),
        (CAFFE, RAW),
        (RAW, dict(bgr_to_rgb=True)),
        (RGB, dict(CAFFE, pad_value=114)),
        (dict(RGB, pad_value=114), CAFFE),
        (dict(RGB, pad_value=114), RGB),
        (dict(mean=[100.0], std=[50.0]), dict(mean=[0.0], std=[255.0], rgb_to_bgr=True)),
    ],
)
def test_other_preprocessors_are_made_up_for(ours, theirs):
    ours, given, expected = both(ours, theirs)
    assert given.shape == expected.shape == (2, 3, 64, 96)
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(given, expected, rtol=0, atol=tolerance)
    assert torch.equal(given[1, :, 48:], expected[1, :, 48:])
    assert torch.equal(given[1, :, :, 80:], expected[1, :, :, 80:])
    assert (ours - expected).abs().max() > 0.1


@pytest.mark.parametrize("one, other", [(1, 3), (3, 1)])
def test_other_numbers_of_channels_are_refused(one, other):
    ours, theirs = (preprocessor(mean=[100.0] * n, std=[50.0] * n) for n in (one, other))
    with pytest.raises(ConfigError) as error:
        TeacherPixels(ours, theirs)
    message = str(error.value)
    assert "student and teacher see the same images" in message
    assert f"have {one} and {other} channels: give both as many" in message
    assert "\n" not in message


def test_a_teacher_that_names_no_preprocessor_takes_the_students_images():
    ours = preprocessor(**RGB)
    seen = ours(raw_images(), True)
    pixels = TeacherPixels(ours, BaseDataPreprocessor())
    assert pixels(seen["inputs"], seen["data_samples"]) is seen["inputs"]


def test_half_precision_images_stay_so():
    ours, theirs = preprocessor(**RGB), preprocessor(**CAFFE)
    seen = ours(raw_images(), True)
    half = TeacherPixels(ours, theirs)(seen["inputs"].bfloat16(), seen["data_samples"])
    assert half.dtype == torch.bfloat16
    expected = theirs(raw_images(), True)["inputs"]
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=2.0)


# --- through the distillation ---------------------------------------------------------------------

STUDENTS = dict(dino=dino_config(), faster_rcnn=two_stage_config())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A DINO trained on other pixels than the students, and its checkpoint."""
    cfg = dino_config(**TEACHER)
    cfg.data_preprocessor.update(dict(CAFFE, pad_value=5))
    folder = tmp_path_factory.mktemp("caffe")
    return dict(config=cfg, checkpoint=random_checkpoint(folder / "teacher.pth", cfg))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_teacher_answers_as_if_it_were_alone(name, teacher):
    kd = build(
        dict(type="KDDETR", student=STUDENTS[name], teacher=teacher, points=dict(num_general=0))
    ).train()
    said, own_answer = [], kd.teacher_family.own_answer
    kd.teacher_family.own_answer = lambda record: said.append(own_answer(record)) or said[-1]
    with torch.no_grad():
        kd(**kd.data_preprocessor(raw_images(), True), mode="loss")
        alone = kd.teacher(**kd.teacher.data_preprocessor(raw_images(), False), mode="tensor")
        wrong = kd.teacher(**kd.data_preprocessor(raw_images(), False), mode="tensor")
    assert len(said) == 1
    for answered, expected, other in zip(said[0][:2], alone, wrong):
        torch.testing.assert_close(answered, expected, rtol=0, atol=1e-4)
        assert (other - expected).abs().max() > 1e-2  # the students' pixels would have shown


def test_other_channels_stop_the_distillation(teacher):
    cfg = copy.deepcopy(teacher["config"])
    cfg.data_preprocessor.update(mean=[100.0], std=[50.0])
    with pytest.raises(ConfigError, match="have 3 and 1 channels"):
        build(
            dict(
                type="KDDETR",
                student=two_stage_config(),
                teacher=dict(config=cfg, checkpoint=None),
            )
        )
