"""DETR (https://arxiv.org/abs/2005.12872), as in ``mmdet.models.DETR``."""

import torch
from mmdet.models.detectors import DETR
from torch import Tensor

from ..points.distill_points import DistillPoints
from .base import Family, Record


class DETRFamily(Family):
    """Queries of DETR: a learnt positional embedding and no place in the image.

    Another DETR of the same width can be asked at its queries, and nothing else can. The boxes of
    its points are what the first decoder layer answers, to be drawn; no model looks at them.
    """

    detector_type = DETR

    @property
    def box_dims(self) -> int:
        return 0

    def queries(self, record: Record) -> DistillPoints:
        boxes = self.own_answer(record).boxes[0].detach().float()
        return DistillPoints(boxes, record["inputs"]["query_pos"].detach())

    def decode(self, record: Record, boxes: Tensor, content: Tensor | None) -> dict:
        inputs = {**record["inputs"], "query": torch.zeros_like(content), "query_pos": content}
        return self.detector.forward_decoder(**inputs)
