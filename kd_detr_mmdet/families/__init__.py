"""Detector families: the only code that knows how MMDetection's detectors decode queries."""

from mmdet.models.detectors.base import BaseDetector

from .base import Family, share_content, unsupported
from .conditional_detr import ConditionalDETRFamily
from .dab_detr import DABDETRFamily
from .ddq_detr import DDQDETRFamily
from .deformable_detr import DeformableDETRFamily
from .detr import DETRFamily
from .dino import DINOFamily
from .two_stage import TwoStageFamily

FAMILIES: tuple[type[Family], ...] = (
    DINOFamily,
    DABDETRFamily,
    DeformableDETRFamily,
    ConditionalDETRFamily,
    DDQDETRFamily,
    DETRFamily,
    TwoStageFamily,
)


def build_family(detector: BaseDetector, blank_content: str = "zeros") -> Family:
    """Wrap a detector in its family; see :class:`Family` for the option.

    Raises:
        ConfigError: If no family covers the detector's class.
    """
    for family in FAMILIES:
        if family.supports(type(detector)):
            return family(detector, blank_content)
    raise unsupported(detector, [family.detector_type.__name__ for family in FAMILIES])


__all__ = [
    "FAMILIES",
    "ConditionalDETRFamily",
    "DABDETRFamily",
    "DDQDETRFamily",
    "DETRFamily",
    "DINOFamily",
    "DeformableDETRFamily",
    "Family",
    "TwoStageFamily",
    "build_family",
    "share_content",
]
