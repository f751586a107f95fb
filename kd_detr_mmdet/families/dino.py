"""DINO (https://arxiv.org/abs/2203.03605), as in ``mmdet.models.DINO``."""

from mmdet.models.detectors import DINO
from torch import Tensor

from ..points.distill_points import DistillPoints
from .base import Family, Record


class DINOFamily(Family):
    """Queries of DINO: a learnt content embedding, and a box that the encoder proposes."""

    detector_type = DINO

    def queries(self, record: Record) -> DistillPoints:
        inputs = record["inputs"]
        return DistillPoints(inputs["reference_points"].float(), inputs["query"])

    def learnt_content(self) -> Tensor:
        return self.detector.query_embedding.weight

    def decode(self, record: Record, boxes: Tensor, content: Tensor) -> dict:
        # dn_mask=None: no denoising rows and no mask, so the points see themselves alone.
        inputs = {**record["inputs"], "query": content, "reference_points": boxes, "dn_mask": None}
        return self.detector.forward_decoder(**inputs)
