"""KD-DETR (CVPR 2024) on MMDetection 3: distillation of detection transformers at shared points.

Importing this package makes every ``mmdet`` detector importable (see :mod:`.mmcv_ops`) and
registers this project's modules in MMDetection's registries.
"""

from .mmcv_ops import provide_mmcv_ops

provide_mmcv_ops()  # before anything imports mmdet.models

__version__ = "0.1.0"

from . import hooks  # noqa: E402, F401  (to register them)
from .datasets.loading import LoadImageOrAnother  # noqa: E402
from .detectors import KDDETR  # noqa: E402
from .losses import RebalancedDistillLoss  # noqa: E402
from .points import (  # noqa: E402
    CoordinateSampler,
    DistillPointGenerator,
    DistillPoints,
    QueryPairing,
)

__all__ = [
    "KDDETR",
    "CoordinateSampler",
    "DistillPointGenerator",
    "DistillPoints",
    "LoadImageOrAnother",
    "QueryPairing",
    "RebalancedDistillLoss",
]
