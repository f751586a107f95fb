"""Pixels and [0, 1] of the valid image: numbers by hand, and what reaches the RoI extractor."""

import pytest
import torch
from conftest import TEACHER, dino_config, two_stage_config

from kd_detr_mmdet.points import DistillPoints
from kd_detr_mmdet.points.coordinates import pixel_corners, relative_boxes

WHOLE = (0.5, 0.5, 1.0, 1.0)
SHAPES = ((3, 60, 90), (3, 48, 80))  # in a batch both are padded to 64 x 96


@pytest.mark.parametrize(
    "box, img_shape, corners",
    [
        (WHOLE, (60, 90), [0.0, 0.0, 90.0, 60.0]),
        (WHOLE, (48, 80), [0.0, 0.0, 80.0, 48.0]),
        (WHOLE, (48, 80, 3), [0.0, 0.0, 80.0, 48.0]),
        # Centre at x = 20, y = 36, 40 wide and 12 high.
        ((0.25, 0.75, 0.5, 0.25), (48, 80), [0.0, 30.0, 40.0, 42.0]),
        # It reaches beyond the image, and is left so.
        ((0.0, 1.0, 0.5, 0.5), (48, 80), [-20.0, 36.0, 20.0, 60.0]),
    ],
)
def test_golden_boxes(box, img_shape, corners):
    assert pixel_corners(torch.tensor([box]), img_shape).tolist() == [corners]
    back = relative_boxes(torch.tensor([corners]), img_shape)[0]
    assert back.tolist() == pytest.approx(box, abs=1e-6)


@pytest.mark.parametrize("img_shape", [(60, 90), (800, 1333)])
def test_there_and_back(img_shape):
    boxes = torch.rand(2, 50, 4, generator=torch.Generator().manual_seed(0))
    there = pixel_corners(boxes, img_shape)
    assert there.shape == boxes.shape
    torch.testing.assert_close(relative_boxes(there, img_shape), boxes, rtol=0, atol=1e-6)


def test_no_boxes():
    assert pixel_corners(torch.zeros(0, 4), (48, 80)).shape == (0, 4)
    assert relative_boxes(torch.zeros(0, 4), (48, 80)).shape == (0, 4)


# --- through the distillation ---------------------------------------------------------------------


@pytest.fixture
def seen(pair, batch):
    """Makes a Faster R-CNN's distillation and returns it with all RoIs that its extractor saw."""

    def make(**points):
        kd = pair(two_stage_config(), dino_config(**TEACHER), points=points)
        rois, data = [], batch(kd, SHAPES, num_items=[3, 2])
        assert data["inputs"].shape[-2:] == (64, 96)
        kd.student.roi_head.bbox_roi_extractor.register_forward_pre_hook(
            lambda module, inputs: rois.append(inputs[1].detach())
        )
        return kd, rois, data

    return make


def test_the_whole_image_in_pixels_of_each_image(seen):
    kd, rois, data = seen(num_general=1, specific=False)
    whole = DistillPoints(torch.tensor([[WHOLE], [WHOLE]]))
    kd.point_generator.general = lambda *args: whole
    kd.train()(**data, mode="loss")
    assert len(rois) == 2  # of the detection loss, and of the distillation
    assert rois[1].tolist() == [[0.0, 0.0, 0.0, 90.0, 60.0], [1.0, 0.0, 0.0, 80.0, 48.0]]
