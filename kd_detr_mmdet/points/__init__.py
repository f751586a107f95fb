"""Distillation points: geometry and random numbers, no detector."""

from .distill_points import Answer, DistillPoints
from .generator import DistillPointGenerator
from .pairing import QueryPairing

__all__ = ["Answer", "DistillPointGenerator", "DistillPoints", "QueryPairing"]
