"""The distillation point, what both models are asked at, and the answer (paper, section 3.1)."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Answer(NamedTuple):
    """What a model says at M points, from each of its L decoder layers.

    Attributes:
        cls_scores: Class logits, shape (L, bs, M, C).
        boxes: ``cx, cy, w, h`` relative to the valid image, in [0, 1], shape (L, bs, M, 4).
        has_background: False: each logit is of a sigmoid of its own. True: the C logits are of one
            softmax, and the last of them is the background's.
        distinct: Which points the model itself would predict at, shape (bs, M), where it leaves
            duplicates out (DDQ-DETR); None for all.
    """

    cls_scores: Tensor
    boxes: Tensor
    has_background: bool = False
    distinct: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """The class that the last layer finds most likely, whatever the background: (bs, M)."""
        scores = self.cls_scores[-1]
        return (scores[..., :-1] if self.has_background else scores).argmax(-1)


@dataclass(frozen=True, eq=False)
class DistillPoints:
    """A set of distillation points, one row of points per image.

    Args:
        boxes: Places in the image, shape (bs, M, 4), ``cx, cy, w, h`` relative to the valid image
            (``img_shape``, without padding), each in [0, 1]. Float32, no gradient.
        content: What a decoder query carries besides its place, shape (bs, M, dim), or None for
            points that are a place and nothing more.
        rois: Which of the image's RoIs that a two-stage student's loss samples each point is, shape
            (bs, M), -1 where it is none of them; None where no point is one.

    Raises:
        ValueError: If the shapes are not as above, or the points ask for a gradient (points are
            shared and never learned).
    """

    boxes: Tensor
    content: Tensor | None = None
    rois: Tensor | None = None

    def __post_init__(self) -> None:
        if self.boxes.dim() != 3 or self.boxes.size(-1) != 4:
            raise ValueError(f"boxes must have shape (bs, M, 4), got {tuple(self.boxes.shape)}")
        if self.boxes.requires_grad:
            raise ValueError("distillation points are never learned: detach the boxes")
        if self.rois is not None and self.rois.shape != self.boxes.shape[:2]:
            raise ValueError(
                f"rois must have shape (bs, M) = {tuple(self.boxes.shape[:2])}, got "
                f"{tuple(self.rois.shape)}"
            )
        if self.content is None:
            return
        if self.content.dim() != 3 or self.content.shape[:2] != self.boxes.shape[:2]:
            raise ValueError(
                f"content must have shape (bs, M, dim) with (bs, M) = "
                f"{tuple(self.boxes.shape[:2])}, got {tuple(self.content.shape)}"
            )
        if self.content.requires_grad:
            raise ValueError("distillation points are never learned: detach the content")

    @property
    def num_points(self) -> int:
        """int: M, the number of points in each image."""
        return self.boxes.size(1)
