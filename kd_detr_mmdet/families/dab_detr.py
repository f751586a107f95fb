"""DAB-DETR (https://arxiv.org/abs/2201.12329), as in ``mmdet.models.DABDETR``."""

from mmdet.models.detectors import DABDETR
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor

from ..points.distill_points import DistillPoints
from .base import Family, Record


class DABDETRFamily(Family):
    """Queries of DAB-DETR: a learnt box before the sigmoid, and content that starts at zero."""

    detector_type = DABDETR

    @property
    def num_queries(self) -> int:
        return self.detector.num_queries * max(self.detector.num_patterns, 1)

    def queries(self, record: Record) -> DistillPoints:
        inputs = record["inputs"]
        boxes = inputs["query_pos"].detach().float().sigmoid()
        return DistillPoints(boxes, inputs["query"].detach())

    def decode(self, record: Record, boxes: Tensor, content: Tensor | None) -> dict:
        inputs = {**record["inputs"], "query": content, "query_pos": inverse_sigmoid(boxes)}
        return self.detector.forward_decoder(**inputs)
