"""Detectors: KDDETR and its teacher."""

from .kddetr import KDDETR
from .teacher import build_teacher

__all__ = ["KDDETR", "build_teacher"]
