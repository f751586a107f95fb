"""A set of distillation points: shapes, and that nothing learns them."""

import dataclasses

import pytest
import torch

from kd_detr_mmdet.points import DistillPoints


def test_points_are_a_place_and_maybe_content():
    boxes, content = torch.rand(2, 5, 4), torch.rand(2, 5, 8)
    points = DistillPoints(boxes, content)
    assert points.boxes is boxes and points.content is content and points.num_points == 5
    assert DistillPoints(boxes).content is None
    assert DistillPoints(boxes[:, :0], content[:, :0]).num_points == 0


def test_points_are_frozen():
    points = DistillPoints(torch.rand(2, 5, 4))
    for name in ("boxes", "content"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(points, name, torch.rand(2, 5, 4))


def test_two_sets_of_equal_boxes_are_two_sets():
    # KDDETR tells the teacher's own queries by identity; comparing tensors would also raise.
    boxes = torch.rand(2, 5, 4)
    assert DistillPoints(boxes) != DistillPoints(boxes)


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 2), (2, 5, 5), (1, 2, 5, 4)])
def test_boxes_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"boxes must have shape \(bs, M, 4\)"):
        DistillPoints(torch.rand(shape))


@pytest.mark.parametrize("shape", [(5, 8), (2, 6, 8), (1, 5, 8), (2, 5, 8, 1)])
def test_content_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"content must have shape .*\(2, 5\)"):
        DistillPoints(torch.rand(2, 5, 4), torch.rand(shape))


@pytest.mark.parametrize("shape", [(5,), (2, 6), (2, 5, 1)])
def test_rois_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"rois must have shape .*\(2, 5\)"):
        DistillPoints(torch.rand(2, 5, 4), rois=torch.zeros(shape, dtype=torch.long))


def test_learned_points_are_refused():
    boxes, content = torch.rand(2, 5, 4), torch.rand(2, 5, 8)
    with pytest.raises(ValueError, match="never learned: detach the boxes"):
        DistillPoints(boxes.clone().requires_grad_())
    with pytest.raises(ValueError, match="never learned: detach the content"):
        DistillPoints(boxes, content.clone().requires_grad_())
