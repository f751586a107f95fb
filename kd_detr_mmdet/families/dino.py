"""DINO (https://arxiv.org/abs/2203.03605), as in ``mmdet.models.DINO``."""

from mmdet.models.detectors import DINO
from torch import Tensor

from ..points.distill_points import DistillPoints
from .base import Family, Record


class DINOFamily(Family):
    """Queries of DINO: a learnt content embedding, and a box that the encoder proposes."""

    detector_type = DINO

    def own_rows(self, record: Record) -> slice:
        return slice(-self.num_queries, None)  # in training, denoising queries come first

    def queries(self, record: Record) -> DistillPoints:
        inputs, rows = record["inputs"], self.own_rows(record)
        boxes, content = inputs["reference_points"][:, rows], inputs["query"][:, rows]
        return DistillPoints(boxes.detach().float(), content.detach())

    def decode(self, record: Record, boxes: Tensor, content: Tensor | None) -> dict:
        # dn_mask=None: no denoising rows and no mask, so the points see themselves alone.
        inputs = {**record["inputs"], "query": content, "reference_points": boxes, "dn_mask": None}
        return self.detector.forward_decoder(**inputs)
