"""Between pixels and [0, 1] of the valid image (``img_shape``, never the padded shape)."""

from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor


def relative_boxes(corners: Tensor, img_shape: tuple[int, ...]) -> Tensor:
    """Corners ``x1, y1, x2, y2`` in pixels (..., 4) to ``cx, cy, w, h`` relative to the image.

    Args:
        corners: Boxes.
        img_shape: Height and width of the valid image, in pixels.
    """
    height, width = img_shape[:2]
    return bbox_xyxy_to_cxcywh(corners / corners.new_tensor([width, height, width, height]))


def pixel_corners(boxes: Tensor, img_shape: tuple[int, ...]) -> Tensor:
    """The way back from :func:`relative_boxes`: a box (0.5, 0.5, 1, 1) is the valid image."""
    height, width = img_shape[:2]
    return bbox_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
