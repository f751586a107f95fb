"""Deformable DETR (https://arxiv.org/abs/2010.04159), as in ``mmdet.models.DeformableDETR``."""

import torch
from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor

from ..points.distill_points import DistillPoints
from .base import Family, Record


class DeformableDETRFamily(Family):
    """Queries of Deformable DETR, in its three forms.

    *One stage*, with box refinement or without: two learnt embeddings, content and position, from
    the second of which a layer of the model's own computes a reference *point*. That layer is
    passed over: both models are given the point's own centre. Content here is both embeddings,
    ``[query, query_pos]``, so ``content_dims`` is twice the width.

    *Two stages*: the encoder proposes boxes, and layers of the model's own compute all the rest
    from the box; nothing but the box is shared.
    """

    detector_type = DeformableDETR

    @property
    def box_dims(self) -> int:
        return 4 if self.detector.as_two_stage else 2

    @property
    def content_dims(self) -> int:
        return 0 if self.detector.as_two_stage else 2 * self.detector.embed_dims

    @property
    def proposes(self) -> str | None:
        return "object" if self.detector.as_two_stage else None

    def queries(self, record: Record) -> DistillPoints:
        inputs = record["inputs"]
        places = inputs["reference_points"].detach().float()
        if self.detector.as_two_stage:
            return DistillPoints(places)
        content = torch.cat([inputs["query"], inputs["query_pos"]], -1).detach()
        return DistillPoints(self._with_first_sizes(places, record), content)

    def decode(self, record: Record, boxes: Tensor, content: Tensor | None) -> dict:
        detector = self.detector
        if detector.as_two_stage:
            embedded = detector.get_proposal_pos_embed(inverse_sigmoid(boxes))
            embedded = detector.pos_trans_norm(detector.pos_trans_fc(embedded))
            query_pos, query = embedded.chunk(2, dim=-1)
        else:
            query, query_pos = content.chunk(2, dim=-1)
        # Cut to the centre in one stage: 4-D references would silently scale its offsets anew.
        places = boxes[..., : self.box_dims]
        inputs = {
            **record["inputs"],
            "query": query,
            "query_pos": query_pos,
            "reference_points": places,
        }
        return detector.forward_decoder(**inputs)
