"""Coordinates as distillation points, for students without queries (paper, section 4.2)."""

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor

from ..utils.errors import ConfigError, check_choice
from .distill_points import DistillPoints
from .generator import MIN_SIZE, DistillPointGenerator

BOXES = ("sampled", "proposals", "anchors")
FOREGROUND_IOU = 0.5
ROUNDING = 1e-5  # as a share of the image, of boxes that end at its border


@TASK_UTILS.register_module()
class CoordinateSampler(DistillPointGenerator):
    """Turns a two-stage student's own boxes into distillation points: the set ``'roi'``.

    A box of the student becomes a query of the teacher through the teacher's own box encoding
    (the paper's ``Q_A = MLP(PE(cx, cy, w, h))``), and the student's RoI head answers at the same
    box. The other direction, the teacher's boxes pooled by the student, are the general and
    specific points of :class:`DistillPointGenerator`; both can be had at once.

    Args:
        boxes: ``'sampled'``: the RoIs that the student's detection loss samples, at most a
            quarter of them on objects; ``'proposals'``: what its RPN proposes, best first;
            ``'anchors'``: its RPN's anchors, which do not depend on what it has learnt.
        max_points: How many points each image gets. Of more boxes some are drawn (of proposals,
            the best are taken); an image with fewer is filled up with general points, since
            padding would change what the teacher's self-attention makes of all others.
        add_ground_truth: Whether the ground truth is among the points.
        foreground_fraction: How many of the student's boxes among the points lie on objects (IoU of
            at least 0.5), at most, as a share of ``max_points``; ground truth that was added and
            random boxes are not counted. None: as it comes.
        num_general: As in :class:`DistillPointGenerator`, but none by default.
        specific: As there, but off by default.
        distribution: As there; of points to fill up as well.
        seed: As there.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        boxes: str = "sampled",
        max_points: int = 300,
        add_ground_truth: bool = False,
        foreground_fraction: float | None = None,
        num_general: int = 0,
        specific: bool = False,
        distribution: str = "uniform",
        seed: int | None = None,
    ) -> None:
        check_choice("points.boxes", boxes, BOXES)
        if isinstance(max_points, bool) or not isinstance(max_points, int) or max_points < 1:
            raise ConfigError(
                f"points.max_points must be a whole number of at least 1, got {max_points!r}"
            )
        if not isinstance(add_ground_truth, bool):
            raise ConfigError(
                f"points.add_ground_truth must be True or False, got {add_ground_truth!r}"
            )
        is_number = isinstance(foreground_fraction, (int, float))
        is_number = is_number and not isinstance(foreground_fraction, bool)
        if foreground_fraction is not None and not (is_number and 0 <= foreground_fraction <= 1):
            raise ConfigError(
                f"points.foreground_fraction must be between 0 and 1, got {foreground_fraction!r}"
            )
        self.boxes = boxes
        self.max_points = max_points
        self.add_ground_truth = add_ground_truth
        self.foreground_fraction = foreground_fraction
        super().__init__(num_general, specific, distribution, seed)

    @property
    def set_names(self) -> tuple[str, ...]:
        return ("roi", *super().set_names)

    def sample(
        self, boxes: list[Tensor], ground_truth: list[Tensor], step: tuple[int, ...]
    ) -> DistillPoints:
        """Make the set ``'roi'`` of one step.

        Args:
            boxes: The student's, for each image (n, 4), ``cx, cy, w, h`` in [0, 1] of the valid
                image, in the order of preference.
            ground_truth: For each image (k, 4), alike.
            step: Names the step, for the draw.

        Returns:
            DistillPoints: ``max_points`` boxes for each image, within the image, without content;
            with ``boxes='sampled'`` it knows which RoIs they are.
        """
        device = boxes[0].device
        generator = self.generator((*step, 1))
        filling = self.draw((len(boxes), self.max_points, 4), generator).to(device)
        places = torch.empty_like(filling)
        rois = places.new_full(places.shape[:2], -1, dtype=torch.long)
        for image, (own, truth) in enumerate(zip(boxes, ground_truth)):
            own, which = _within(own.detach().float())
            truth, _ = _within(truth.detach().float())
            first = truth[: self.max_points] if self.add_ground_truth else truth[:0]
            if len(first):  # the loss samples the ground truth as well: no point counts twice
                other = ~(own[:, None] == first).all(-1).any(1)
                own, which = own[other], which[other]
            picked = self._pick(own, truth, len(first), generator)
            places[image] = torch.cat([first, own[picked], filling[image]])[: self.max_points]
            rois[image, len(first) : len(first) + len(picked)] = which[picked]
        return DistillPoints(places, rois=rois if self.boxes == "sampled" else None)

    def _pick(self, own: Tensor, truth: Tensor, taken: int, generator: torch.Generator) -> Tensor:
        """Indices of boxes beside ``taken`` true ones, no more of both on objects than wanted."""
        room = self.max_points - taken
        if self.boxes == "proposals":
            order = torch.arange(len(own), device=own.device)
        else:
            order = torch.randperm(len(own), generator=generator).to(own.device)
        if self.foreground_fraction is None or not len(truth) or not len(own):
            return order[:room]
        on_object = objects_at(own[order], truth) >= 0
        wanted = int(self.foreground_fraction * self.max_points + 1e-6)  # 0.29 * 100 is 28.99...
        foreground = order[on_object][: max(wanted - taken, 0)]
        return torch.cat([foreground, order[~on_object]])[:room]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(boxes={self.boxes!r}, max_points={self.max_points}, "
            f"add_ground_truth={self.add_ground_truth}, "
            f"foreground_fraction={self.foreground_fraction}, num_general={self.num_general}, "
            f"specific={self.specific}, distribution={self.distribution!r}, seed={self.seed})"
        )


def objects_at(boxes: Tensor, truth: Tensor) -> Tensor:
    """Which object each box lies on, by an IoU of at least 0.5.

    Args:
        boxes: Shape (M, 4), cxcywh.
        truth: The objects' boxes, shape (n, 4), alike.

    Returns:
        Tensor: Numbers of objects, shape (M,), -1 for a box on none.
    """
    if not len(truth):
        return torch.full((len(boxes),), -1, device=boxes.device)
    overlaps = bbox_overlaps(bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(truth))
    best, which = overlaps.max(1)
    return torch.where(best >= FOREGROUND_IOU, which, -1)


def _within(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes cxcywh cut to the image, beyond which anchors reach, and which of them lie in it.

    Slivers with a side below MIN_SIZE are left out.

    Returns:
        tuple: The boxes, and their indices in ``boxes``, -1 where something was cut off: that is
            no longer the box that it was.
    """
    corners = bbox_cxcywh_to_xyxy(boxes)
    inside = corners.clamp(0, 1)
    sizes = inside[:, 2:] - inside[:, :2]
    cut = torch.cat([inside[:, :2] + sizes / 2, sizes], -1)
    which = (sizes >= MIN_SIZE).all(-1).nonzero()[:, 0]
    whole = (corners - inside)[which].abs().amax(-1) < ROUNDING
    return cut[which], torch.where(whole, which, -1)
