"""DDQ-DETR (https://arxiv.org/abs/2303.12776), as in ``mmdet.models.DDQDETR``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.detectors import DDQDETR
from torch import Tensor, nn

from ..points.distill_points import Answer, DistillPoints
from .base import Look, Record, swapped
from .dino import DINOFamily


@contextmanager
def predicting_at_all(head: nn.Module, distinct: Tensor) -> Iterator[None]:
    """Within the context, DDQ-DETR's head leaves none of an image's queries out as duplicates.

    It leaves out what its decoder has noted last, which may be of another call.

    Args:
        head: Of a DDQ-DETR.
        distinct: True for each of the M queries, shape (M,).
    """
    noted = distinct.expand(head.cache_dict["num_heads"], 1, -1)
    with swapped(head, "cache_dict", dict(head.cache_dict, distinct_query_mask=[noted])):
        yield


class DDQDETRFamily(DINOFamily):
    """Queries of DDQ-DETR: content from the image's memory, and boxes that survive an NMS.

    In training it decodes dense queries as well, through heads of their own, and keeps book of
    all that in a dict shared by its modules. Points are decoded as at inference, without dense
    queries, and the book is put back. Between layers it selects distinct queries by NMS; at points
    each model selects among its own answers.
    """

    detector_type = DDQDETR

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Within the context, record; the loss of dense queries computes in float32.

        mmdet's code of that loss writes float32 ground truth into a copy of the predicted boxes,
        which PyTorch refuses where AMP made them half precision, and takes a cross entropy of
        probabilities, which it refuses on a GPU wherever autocast is on.
        """
        auxiliary = self.detector.bbox_head.aux_loss_for_dense
        loss = auxiliary.loss

        def in_float32(scores: Tensor, boxes: Tensor, *args: Any) -> dict:
            with torch.autocast(scores.device.type, enabled=False):
                return loss(scores.float(), boxes.float(), *args)

        with swapped(auxiliary, "loss", in_float32), super().recording() as record:
            yield record

    def own_rows(self, record: Record) -> slice:
        # In training: denoising, distinct (its own), dense.
        end = record["inputs"]["query"].size(1)
        if record["inputs"]["dn_mask"] is not None:
            end -= self.detector.cache_dict["num_dense_queries"]
        return slice(end - self.num_queries, end)

    def memory_at(self, record: Record, boxes: Tensor) -> Tensor:
        return self.detector.query_map(super().memory_at(record, boxes))

    def outputs(self, record: Record) -> dict:
        decoded = "outputs" in record
        outputs = super().outputs(record)
        if not decoded:
            record["distinct"] = self._distinct()
        return outputs

    def own_answer(self, record: Record) -> Answer:
        answer = super().own_answer(record)
        return answer._replace(distinct=record.get("distinct"))

    def _distinct(self) -> Tensor | None:
        """Which queries the last decoder call kept, shape (bs, M)."""
        book = self.detector.cache_dict
        if not book["distinct_query_mask"]:  # a single layer selects none
            return None
        # Masks of attention, (bs * heads, M, M), of which mmdet reads one row.
        return book["distinct_query_mask"][-1][:: book["num_heads"], 0]

    def answer(
        self,
        record: Record,
        points: DistillPoints,
        labels: Tensor | None = None,
        looks: list[Look] | None = None,
    ) -> Answer:
        with self._as_at_inference(points.num_points):
            answer = super().answer(record, points, labels, looks)
            return answer._replace(distinct=self._distinct())

    @contextmanager
    def _as_at_inference(self, num_points: int) -> Iterator[None]:
        cache, parts = self.detector.cache_dict, (self.detector.decoder, self.detector.bbox_head)
        before = dict(cache), [part.training for part in parts]
        cache["dis_query_info"] = [0, num_points]
        for part in parts:  # the head splits dense queries off as well; dropout keeps its mode
            part.training = False
        try:
            yield
        finally:
            cache.clear()
            cache.update(before[0])
            for part, mode in zip(parts, before[1]):
                part.training = mode
