"""Conditional DETR (https://arxiv.org/abs/2108.06152), as in ``mmdet.models.ConditionalDETR``."""

import torch
from mmdet.models.detectors import ConditionalDETR
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor

from ..points.distill_points import DistillPoints
from .base import Family, Record


class ConditionalDETRFamily(Family):
    """Queries of Conditional DETR: a learnt positional embedding; content starts at zero.

    A network of the model's own turns the embedding into a reference *point*. While points are
    asked, a hook replaces its result by their centres, so that both models look at one place. The
    embedding, which self-attention and the first layer read as well, is the content here.
    """

    detector_type = ConditionalDETR

    @property
    def box_dims(self) -> int:
        return 2

    def looked_at(self, outputs: dict) -> Tensor:
        return outputs["references"]

    def queries(self, record: Record) -> DistillPoints:
        boxes = self._with_first_sizes(self.looked_at(self.outputs(record)), record)
        return DistillPoints(boxes, record["inputs"]["query_pos"].detach())

    def decode(self, record: Record, boxes: Tensor, content: Tensor | None) -> dict:
        centers = inverse_sigmoid(boxes[..., :2])
        inputs = {**record["inputs"], "query": torch.zeros_like(content), "query_pos": content}
        network = self.detector.decoder.ref_point_head
        with network.register_forward_hook(lambda *_: centers):
            return self.detector.forward_decoder(**inputs)
