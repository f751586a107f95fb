"""Hooks that the tools register around a training run."""

from .checkpoint_hook import AtomicCheckpointHook
from .cpu_time_hook import CpuTimeHook
from .kd_warmup import KDWarmup
from .log_hook import DistillLogHook
from .non_finite_hook import NonFiniteHook
from .official_weights_hook import OfficialWeightsHook
from .random_state_hook import RandomStateHook
from .report_hook import DistillReportHook
from .resumed_validation_hook import ResumedValidationHook

__all__ = [
    "AtomicCheckpointHook",
    "CpuTimeHook",
    "DistillLogHook",
    "DistillReportHook",
    "KDWarmup",
    "NonFiniteHook",
    "OfficialWeightsHook",
    "RandomStateHook",
    "ResumedValidationHook",
]
