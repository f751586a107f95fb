"""Hooks that the tools register around a training run."""

from .random_state_hook import RandomStateHook
from .report_hook import DistillReportHook

__all__ = ["DistillReportHook", "RandomStateHook"]
