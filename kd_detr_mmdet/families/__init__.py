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

# The first that supports a detector's class is taken.
FAMILIES: list[type[Family]] = [
    DINOFamily,
    DABDETRFamily,
    DeformableDETRFamily,
    ConditionalDETRFamily,
    DDQDETRFamily,
    DETRFamily,
    TwoStageFamily,
]


def register_family(family: type[Family]) -> type[Family]:
    """Make a family of yours known, as a class decorator; it is asked before all others.

    Its module has to be imported before a model is built: name it in the config's
    ``custom_imports``.

    Raises:
        TypeError: If it is no :class:`Family`, or names no ``detector_type``.
    """
    if not (isinstance(family, type) and issubclass(family, Family)):
        raise TypeError(f"a family is a subclass of kd_detr_mmdet.families.Family, got {family!r}")
    if not hasattr(family, "detector_type"):
        raise TypeError(f"{family.__name__} names no detector_type: the class of its detectors")
    FAMILIES.insert(0, family)
    return family


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
    "register_family",
    "share_content",
]
