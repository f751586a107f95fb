"""Detector families: the only code that knows how MMDetection's detectors decode queries."""

from mmdet.models.detectors.base import BaseDetector

from .base import Family, unsupported
from .dab_detr import DABDETRFamily
from .dino import DINOFamily

FAMILIES: tuple[type[Family], ...] = (DINOFamily, DABDETRFamily)


def build_family(
    detector: BaseDetector, blank_content: str = "zeros", foreign_content: str = "auto"
) -> Family:
    """Wrap a detector in its family; see :class:`Family` for the options.

    Raises:
        ConfigError: If no family covers the detector's class.
    """
    for family in FAMILIES:
        if family.supports(type(detector)):
            return family(detector, blank_content, foreign_content)
    raise unsupported(detector, [f.__name__.removesuffix("Family") for f in FAMILIES])


__all__ = ["FAMILIES", "DABDETRFamily", "DINOFamily", "Family", "build_family"]
