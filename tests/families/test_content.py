"""The content of queries at points: whose it is, and what stands in for it."""

import pytest
import torch
from conftest import (
    DINO_WIDTH,
    build,
    conditional_config,
    dab_config,
    ddq_config,
    deformable_config,
    detr_config,
    dino_config,
    needs_dino_widths,
)

from kd_detr_mmdet.families import build_family, share_content
from kd_detr_mmdet.families.base import Record
from kd_detr_mmdet.points import DistillPoints
from kd_detr_mmdet.utils import ConfigError

MAKERS = {
    "dino": dino_config,
    "dino 48": lambda: dino_config(width=48),
    "dino 64": lambda: dino_config(width=64),
    "dab": lambda: dab_config(width=DINO_WIDTH),
    "dab 64": lambda: dab_config(width=64),
    "ddq": lambda: ddq_config(width=DINO_WIDTH),
    "deformable": deformable_config,
    "refine": lambda: deformable_config("refine"),
    "wide": lambda: deformable_config(width=64),
    "two stage": lambda: deformable_config("two stage"),
    "conditional": conditional_config,
    "dino 256": lambda: dino_config(width=256),
    "detr": detr_config,
}


@pytest.fixture(scope="module")
def family():
    """Makes a family by name; its detector is built once."""
    made = {}

    def make(name, blank_content="zeros"):
        if name not in made:
            made[name] = build(MAKERS[name]())
        return build_family(made[name], blank_content)

    return make


# --- whose content --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "student, teacher, auto, forced",
    [
        # One family and one width.
        ("dino", "dino", True, True),
        ("dab", "dab", True, True),
        ("ddq", "ddq", True, True),
        ("deformable", "deformable", True, True),
        ("deformable", "refine", True, True),
        ("conditional", "conditional", True, True),
        ("detr", "detr", True, True),
        # One family, other widths: 'teacher' cannot be.
        pytest.param("dino", "dino 48", False, None, marks=needs_dino_widths),
        ("dab 64", "dab", False, None),
        ("deformable", "wide", False, None),
        # Other families, the same width: only on demand.
        ("dino", "dab", False, True),
        ("dab", "dino", False, True),
        ("ddq", "dino", False, True),
        ("dino", "ddq", False, True),
        ("dino 256", "conditional", False, True),
        # 2 x 32 channels in one stage.
        pytest.param("deformable", "dino 64", False, True, marks=needs_dino_widths),
        # Neither.
        ("dino", "dab 64", False, None),
        ("dino", "deformable", False, None),
        # Queries made of boxes alone have none to give, and take none.
        ("two stage", "two stage", False, None),
        ("deformable", "two stage", False, None),
        ("two stage", "dino 256", False, None),
    ],
)
def test_who_takes_the_teachers_content(family, student, teacher, auto, forced):
    student, teacher = family(student), family(teacher)
    share_content(student, teacher, "auto")
    assert student.takes_content is auto
    share_content(student, teacher, "blank")
    assert student.takes_content is False
    assert teacher.takes_content is True  # the teacher always takes what is its own
    if forced:
        share_content(student, teacher, "teacher")
        assert student.takes_content is True
        return
    with pytest.raises(ConfigError) as error:
        share_content(student, teacher, "teacher")
    message = str(error.value)
    assert "student_content='teacher'" in message and "'auto'" in message and "\n" not in message
    assert f"teacher's content has {teacher.content_dims} channels" in message
    assert f"the student's {student.content_dims} " in message


@pytest.mark.parametrize("option", ["student", None, "zeros"])
def test_other_options_are_named(family, option):
    with pytest.raises(ConfigError, match="^student_content must be one of"):
        share_content(family("dino"), family("dino"), option)


# --- what stands in for it ------------------------------------------------------------------------

CENTRES = [[[0.2, 0.2], [0.8, 0.2], [0.5, 0.9]], [[0.9, 0.9], [0.1, 0.9], [0.1, 0.1]]]
# Sizes that would mislead a distance between whole boxes.
SIZES = [[[0.9, 0.9], [0.1, 0.1], [0.1, 0.9]], [[0.9, 0.1], [0.5, 0.5], [0.1, 0.1]]]
CONTENT = [[1.0, 2.0, 6.0], [10.0, 20.0, 30.0]]
ASKED = [
    [[0.25, 0.30, 0.1, 0.1], [0.70, 0.10, 0.9, 0.9], [0.45, 0.70, 0.9, 0.9], [0.2, 0.2, 0.1, 0.9]],
    [[0.20, 0.75, 0.1, 0.1], [0.20, 0.25, 0.5, 0.5], [1.00, 1.00, 0.1, 0.1], [0.1, 0.6, 0.9, 0.1]],
]
NEAREST = [[1.0, 2.0, 6.0, 1.0], [20.0, 30.0, 10.0, 20.0]]


def hand_made(family):
    """A record of a detector of three queries per image, behind a denoising one, and points."""
    boxes = torch.cat([torch.tensor(CENTRES), torch.tensor(SIZES)], -1)
    content = torch.tensor(CONTENT)[..., None].expand(-1, -1, family.content_dims)
    # The denoising query sits where the first point is.
    boxes = torch.cat([torch.tensor(ASKED)[:, :1], boxes], 1)
    content = torch.cat([torch.full_like(content[:, :1], 1000.0), content], 1).requires_grad_()
    return Record(inputs=dict(reference_points=boxes, query=content)), torch.tensor(ASKED)


@pytest.mark.parametrize(
    "blank, expected",
    [
        ("zeros", [[0.0] * 4] * 2),
        ("mean", [[3.0] * 4, [20.0] * 4]),  # (1 + 2 + 6) / 3, (10 + 20 + 30) / 3
        ("nearest", NEAREST),
    ],
)
@pytest.mark.parametrize("brings", [False, True])
def test_blank_content_golden_numbers(blank, expected, brings):
    family = build_family(build(dino_config(num_queries=3)), blank)
    record, boxes = hand_made(family)
    points = DistillPoints(boxes, torch.full((2, 4, DINO_WIDTH), 7.0) if brings else None)
    family.takes_content = not brings  # what comes with the points is of no use here
    content = family.content_at(points, record)
    assert content.shape == (2, 4, DINO_WIDTH) and not content.requires_grad
    assert torch.equal(content, torch.tensor(expected)[..., None].expand(-1, -1, DINO_WIDTH))


@pytest.mark.parametrize("blank", ["zeros", "mean", "nearest"])
def test_content_that_comes_with_points_goes_before_blank(blank):
    family = build_family(build(dino_config(num_queries=3)), blank)
    record, boxes = hand_made(family)
    points = DistillPoints(boxes, torch.randn(2, 4, DINO_WIDTH))
    assert family.content_at(points, record) is points.content


@pytest.mark.parametrize("blank", ["zeros", "mean", "nearest"])
@pytest.mark.parametrize("name", ["dino", "dab", "deformable", "refine", "conditional", "ddq"])
def test_blank_content_of_a_real_record(family, batch, name, blank):
    asked = family(name, blank)
    shapes = ((3, 64, 96), (3, 64, 96))  # DINO's proposals in padding all sit at one place
    data = batch(asked.detector.eval(), shapes, training=False)
    with torch.no_grad():
        record = asked.look(data["inputs"], data["data_samples"])
    own = asked.queries(record)
    places = own.boxes[:, [4, 0]]
    content = asked.content_at(DistillPoints(places), record)
    assert content.shape == (2, 2, asked.content_dims)
    if blank == "zeros":
        assert not content.any()
    elif blank == "mean":
        expected = own.content.sum(1, keepdim=True) / 12
        torch.testing.assert_close(content, expected.expand(-1, 2, -1))
    elif name != "dab":  # whose contents are all the same
        assert torch.equal(content, own.content[:, [4, 0]])


@pytest.mark.parametrize("blank", ["zeros", "mean", "nearest"])
def test_two_stages_take_no_content(family, blank):
    two_stage = family("two stage", blank)
    boxes = torch.tensor(ASKED)
    for points in (DistillPoints(boxes), DistillPoints(boxes, torch.ones(2, 4, 256))):
        assert two_stage.content_at(points, Record()) is None
