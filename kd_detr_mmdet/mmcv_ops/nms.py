"""Greedy non-maximum suppression with the signature of mmcv's compiled operator."""

import numpy as np
import torch
from torch import Tensor

from .torchvision_ops import torchvision_ops, working_dtype

BLOCK = 32  # boxes that are compared with all others at a time


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

    def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # indices to (len(a), len(b))
        a = a[:, None]
        width = np.minimum(x2[a], x2[b]) - np.maximum(x1[a], x1[b]) + offset
        height = np.minimum(y2[a], y2[b]) - np.maximum(y1[a], y1[b]) + offset
        shared = width.clip(min=0) * height.clip(min=0)
        # Two empty boxes (IoU 0/0) do not overlap.
        return shared / (area[a] + area[b] - shared) > np.float32(iou_threshold)

    # Block by block, which takes a fifth of the calls and of the time of box by box.
    keep = [np.empty(0, dtype=np.int64)]
    left = np.arange(len(order))
    with np.errstate(invalid="ignore"):
        while len(left):
            block, left = left[:BLOCK], left[BLOCK:]
            within = overlap(block, block)
            stays = np.ones(len(block), dtype=bool)
            for i in range(len(block)):
                if stays[i]:
                    stays[i + 1 :] &= ~within[i, i + 1 :]
            keep.append(block[stays])
            left = left[~overlap(keep[-1], left).any(0)]
    return order[torch.from_numpy(np.concatenate(keep))].to(boxes.device)
