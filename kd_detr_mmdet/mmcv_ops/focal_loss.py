"""Sigmoid focal loss (Lin et al., 2017) with the signatures of mmcv's compiled operator.

mmdet computes it in PyTorch on the CPU and calls the operator on an accelerator.
"""

import torch
from torch import Tensor

from .torchvision_ops import working_dtype

# The operator clamps probabilities at C's FLT_MIN before it takes their logarithm.
FLT_MIN = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write every element's loss into ``output``.

    Args:
        input: (N, C) logits; half precision is computed in float32.
        target: (N,) class of each row, C for background.
        weight: (C,) weight of the rows of each class, or empty for none. Background weighs 1.
        output: (N, C), written in place.
        gamma: Focusing exponent.
        alpha: Weight of the positive elements; the negative ones have ``1 - alpha``.
    """
    p, positive, scale = _terms(input, target, weight)
    loss_positive = -alpha * (1 - p) ** gamma * p.clamp(min=FLT_MIN).log()
    loss_negative = -(1 - alpha) * p**gamma * (1 - p).clamp(min=FLT_MIN).log()
    output.copy_(torch.where(positive, loss_positive, loss_negative) * scale)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of every element's loss to its logit into ``grad_input`` (N, C).

    The other arguments are those of :func:`sigmoid_focal_loss_forward`.
    """
    p, positive, scale = _terms(input, target, weight)
    q = 1 - p
    log_p, log_q = p.clamp(min=FLT_MIN).log(), q.clamp(min=FLT_MIN).log()
    grad_positive = -alpha * q**gamma * (q - gamma * p * log_p)
    grad_negative = -(1 - alpha) * p**gamma * (gamma * q * log_q - p)
    grad_input.copy_(torch.where(positive, grad_positive, grad_negative) * scale)


def _terms(input: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (N, C), which of them are positive (N, C), and each row's weight (N, 1)."""
    p = input.detach().to(working_dtype(input)).sigmoid()
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    if weight.numel() == 0:
        return p, positive, p.new_ones(1, 1)
    # The compiled operator reads past the end of `weight` for background.
    scale = torch.cat((weight.to(p), p.new_ones(1)))[target]
    return p, positive, scale[:, None]
