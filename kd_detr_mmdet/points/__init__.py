"""Distillation points: geometry and random numbers, no detector."""

from .distill_points import Answer, DistillPoints
from .generator import DistillPointGenerator

__all__ = ["Answer", "DistillPointGenerator", "DistillPoints"]
