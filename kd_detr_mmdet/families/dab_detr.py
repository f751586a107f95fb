"""DAB-DETR (https://arxiv.org/abs/2201.12329), as in ``mmdet.models.DABDETR``."""

from mmdet.models.detectors import DABDETR
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor

from ..points.distill_points import DistillPoints
from ..utils.errors import ConfigError
from .base import Family, Record


class DABDETRFamily(Family):
    """Queries of DAB-DETR: a learnt box before the sigmoid, and content that starts at zero.

    Raises:
        ConfigError: If its queries are centres without a size (``decoder.query_dim=2``).
    """

    detector_type = DABDETR

    def __init__(self, detector: DABDETR, blank_content: str = "zeros") -> None:
        super().__init__(detector, blank_content)
        if detector.decoder.query_dim != 4:
            raise ConfigError(
                "DAB-DETR's queries must be boxes to share them with another model, but "
                f"decoder.query_dim is {detector.decoder.query_dim}: set it to 4, and train the "
                "teacher with it"
            )

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
