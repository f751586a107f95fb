"""Distillation points: geometry and random numbers, no detector."""

from .coordinate_sampler import CoordinateSampler
from .distill_points import Answer, DistillPoints
from .generator import DistillPointGenerator
from .pairing import QueryPairing

__all__ = [
    "Answer",
    "CoordinateSampler",
    "DistillPointGenerator",
    "DistillPoints",
    "QueryPairing",
]
