"""Greedy non-maximum suppression with the signature of mmcv's compiled operator."""

import numpy as np
import torch
from torch import Tensor

from .torchvision_ops import torchvision_ops, working_dtype


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that no kept, better box overlaps by more than the threshold.

    torchvision computes the case ``offset == 0``, where it is at hand; it knows no offset.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2 in pixels, of any floating type.
        scores: (N,).
        iou_threshold: A box goes when its IoU with a kept one is greater; an equal one stays.
        offset: 0, or 1 for the legacy rule that a box is ``x2 - x1 + 1`` pixels wide.

    Returns:
        (K,) indices into ``boxes``, best score first; equal scores in the order of the input.
    """
    boxes, scores = boxes.detach(), scores.detach()
    dtype = working_dtype(boxes)
    # The compiled operator takes the threshold as a C float. torchvision takes a double, and
    # 0.6 as a double is below the IoU 0.6 as a float: boxes exactly at the threshold would go.
    iou_threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    vision = torchvision_ops()
    if offset == 0 and vision is not None:
        return vision.nms(boxes.to(dtype), scores.to(dtype), iou_threshold)

    # On the CPU, since the loop would make an accelerator wait once for every kept box, and in
    # NumPy, whose calls on arrays this small cost a quarter of PyTorch's.
    order = scores.cpu().sort(descending=True, stable=True).indices
    x1, y1, x2, y2 = boxes.to("cpu", dtype)[order].numpy().T
    area = (x2 - x1 + offset) * (y2 - y1 + offset)
    keep = []
    left = np.arange(len(order))
    with np.errstate(invalid="ignore"):
        while len(left):
            best, left = left[0], left[1:]
            keep.append(best)
            width = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left]) + offset
            height = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left]) + offset
            shared = width.clip(min=0) * height.clip(min=0)
            iou = shared / (area[best] + area[left] - shared)
            # Not "<=": two empty boxes (IoU 0/0) both stay.
            left = left[~(iou > np.float32(iou_threshold))]
    return order[torch.tensor(keep, dtype=torch.long)].to(boxes.device)
