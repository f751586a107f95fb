"""Where the models are asked: general and specific points (paper, sections 3.3 and 3.4)."""

import numpy as np
import torch
from mmdet.registry import TASK_UTILS
from mmengine.dist import get_rank
from torch import Tensor

from ..utils.errors import ConfigError, check_choice
from .distill_points import DistillPoints

DISTRIBUTIONS = ("uniform", "normal")
# Of a random box: a pixel of 1,000. DAB-DETR divides by the size, which overflows in float16 below.
MIN_SIZE = 1e-3


@TASK_UTILS.register_module()
class DistillPointGenerator:
    """Draws the named sets of distillation points of one training step.

    *General* points scan the whole image: boxes drawn anew in every iteration, for every image,
    never learned and without content. *Specific* points are the teacher's own decoder queries,
    content and boxes, which dwell where the teacher looks.

    The draw is a pure function of (seed, rank, step): it touches no global random state, so the
    student's own training sees the same random numbers as without distillation, and a resumed run
    draws what the uninterrupted one would have drawn.

    Args:
        num_general: Number of general points per image; 0 for none. The paper's ``M_g``.
        specific: Whether the teacher's queries are used as points.
        distribution: ``'uniform'``: ``cx, cy, w, h ~ U(0, 1)`` (the paper's text); ``'normal'``:
            ``sigmoid(N(0, 1))``, denser in the centre (the authors' DAB-DETR code). Sides are at
            least 0.001.
        seed: Seed of the draw. None takes PyTorch's, which MMEngine's ``randomness`` sets.
        proposals: Whether the encoders' proposals are compared as well, at every place of the
            memory: they decide where a two-stage detector's queries look, which points do not
            teach. Ours, not the paper's.

    Raises:
        ConfigError: If an argument is out of range or no point is left to distil at.
    """

    def __init__(
        self,
        num_general: int = 300,
        specific: bool = True,
        distribution: str = "uniform",
        seed: int | None = None,
        proposals: bool = False,
    ) -> None:
        if isinstance(num_general, bool) or not isinstance(num_general, int) or num_general < 0:
            raise ConfigError(
                f"points.num_general must be a whole number of at least 0, got {num_general!r}"
            )
        if not isinstance(specific, bool):
            raise ConfigError(f"points.specific must be True or False, got {specific!r}")
        self.num_general = num_general
        if not isinstance(proposals, bool):
            raise ConfigError(f"points.proposals must be True or False, got {proposals!r}")
        self.specific = specific
        self.proposals = proposals
        if not self.set_names:
            raise ConfigError(
                "points leave nothing to distil: set points.num_general above 0, "
                "points.specific=True or points.proposals=True, or train the student's own config "
                "without KDDETR"
            )
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ConfigError(f"points.seed must be a whole number or None, got {seed!r}")
        check_choice("points.distribution", distribution, DISTRIBUTIONS)
        self.distribution = distribution
        self.seed = seed

    def __call__(
        self, teacher_queries: DistillPoints, step: tuple[int, ...]
    ) -> dict[str, DistillPoints]:
        """Make the sets of one step.

        Args:
            teacher_queries: The teacher's own queries for this batch.
            step: Non-negative integers that name this step; another step, another draw.

        Returns:
            dict: ``'specific'`` and ``'general'`` points, as far as they are wanted.
        """
        sets = {}
        if self.specific:
            sets["specific"] = teacher_queries
        if self.num_general:
            sets["general"] = self.general(
                teacher_queries.boxes.size(0), step, teacher_queries.boxes.device
            )
        return sets

    @property
    def set_names(self) -> tuple[str, ...]:
        """tuple: Names of the sets that are compared; the proposals are the models' own."""
        wanted = dict(specific=self.specific, general=self.num_general, proposals=self.proposals)
        return tuple(name for name, want in wanted.items() if want)

    def general(
        self, batch_size: int, step: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> DistillPoints:
        """Draw general points: boxes of shape (batch_size, num_general, 4) without content.

        The numbers are drawn on the CPU, so that they are the same on every device.
        """
        shape = (batch_size, self.num_general, 4)
        boxes = self.draw(shape, self.generator(step))
        return DistillPoints(boxes.to(device, non_blocking=True))

    def generator(self, step: tuple[int, ...]) -> torch.Generator:
        """Random numbers of one step on this rank."""
        seed = torch.initial_seed() if self.seed is None else self.seed
        entropy = [seed % 2**64, get_rank(), *step]
        state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random boxes in [0, 1] of shape (..., 4), on the CPU; sides of at least MIN_SIZE."""
        if self.distribution == "uniform":
            boxes = torch.rand(shape, generator=generator)
        else:
            boxes = torch.randn(shape, generator=generator).sigmoid()
        boxes[..., 2:].clamp_(min=MIN_SIZE)
        return boxes

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_general={self.num_general}, specific={self.specific}, "
            f"distribution={self.distribution!r}, seed={self.seed}, proposals={self.proposals})"
        )
