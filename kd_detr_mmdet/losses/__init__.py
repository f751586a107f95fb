"""Losses: two answers in, named scalars out. No detector, no config."""

from .rebalanced_distill_loss import RebalancedDistillLoss

__all__ = ["RebalancedDistillLoss"]
