"""DINO (https://arxiv.org/abs/2203.03605), as in ``mmdet.models.DINO``."""

import torch
from mmdet.models.detectors import DINO
from mmdet.models.layers import DinoTransformerDecoder
from torch import Tensor, nn

from ..points.distill_points import DistillPoints
from ..utils.errors import ConfigError
from .base import Family, Record


def from_official(weights: dict[str, Tensor], detector: nn.Module) -> dict[str, Tensor]:
    """Weights of the official mmdet's DINO, as its zoo has them, for the maintained fork's.

    Their decoders read a sine encoding of a box: of each of its four coordinates, the official one
    takes 64 frequencies, the fork at a width of 256 takes 128, of which every other is an official
    one. The layer that reads them gets zeros for the rest, so that both answer alike.

    Returns:
        dict: The weights as they are wherever this is not the difference.
    """
    key = "decoder.ref_point_head.layers.0.weight"
    layer, own = weights.get(key), detector.state_dict().get(key)
    if layer is None or own is None or (layer.shape, own.shape) != ((256, 512), (256, 1024)):
        return weights
    wider = layer.new_zeros(own.shape)
    # (channels, coordinates, frequencies, sine and cosine)
    wider.unflatten(1, (4, 128, 2))[:, :, ::2] = layer.unflatten(1, (4, 64, 2))
    return {**weights, key: wider}


class DINOFamily(Family):
    """Queries of DINO: a learnt content embedding, and a box that the encoder proposes."""

    detector_type = DINO
    has_memory = True

    def __init__(self, detector: DINO, blank_content: str = "zeros") -> None:
        super().__init__(detector, blank_content)
        decoder = detector.decoder
        if not isinstance(decoder, DinoTransformerDecoder):
            return
        # The official mmdet hands this layer 4 x 128 numbers at any width; built for 2 x width.
        numbers = decoder.ref_point_head.layers[0].in_features
        if numbers not in (4 * 128, 4 * decoder.embed_dims):
            raise ConfigError(
                f"this mmdet's DINO works at a width (embed_dims) of 256 only, not of "
                f"{decoder.embed_dims}: take 256, or the maintained fork (requirements.txt)"
            )

    @property
    def proposes(self) -> str:
        return "classes"

    def own_rows(self, record: Record) -> slice:
        return slice(-self.num_queries, None)  # in training, denoising queries come first

    def queries(self, record: Record) -> DistillPoints:
        inputs, rows = record["inputs"], self.own_rows(record)
        boxes, content = inputs["reference_points"][:, rows], inputs["query"][:, rows]
        # DDQ-DETR's content comes from the memory, in the teacher's precision, not the student's.
        return DistillPoints(boxes.detach().float(), content.detach().float())

    def memory_at(self, record: Record, boxes: Tensor) -> Tensor:
        """The memory at a box's centre, on the level whose proposals have about the box's size."""
        inputs = record["inputs"]
        shapes = inputs["spatial_shapes"].to(boxes.device)  # (levels, 2): height, width
        # mmdet's encoder proposes boxes of a side of 0.05 * 2 ** level.
        size = (boxes[..., 2] * boxes[..., 3]).clamp(min=1e-9).sqrt()
        level = (size / 0.05).log2().round().long().clamp(0, len(shapes) - 1)
        ratios = inputs["valid_ratios"].gather(1, level[..., None].expand(-1, -1, 2))
        sides = shapes[level].flip(-1)  # width, height
        place = (boxes[..., :2] * ratios * sides).long()
        place = torch.minimum(place, sides - 1)
        index = inputs["level_start_index"].to(boxes.device)[level]
        index = index + place[..., 1] * sides[..., 0] + place[..., 0]
        memory = inputs["memory"].detach()
        return memory.gather(1, index[..., None].expand(-1, -1, memory.size(-1)))

    def decode(self, record: Record, boxes: Tensor, content: Tensor | None) -> dict:
        # dn_mask=None: no denoising rows and no mask, so the points see themselves alone.
        inputs = {**record["inputs"], "query": content, "reference_points": boxes, "dn_mask": None}
        return self.detector.forward_decoder(**inputs)
