"""torchvision's operators, where they import."""

import functools
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def torchvision_ops() -> ModuleType | None:
    """``torchvision.ops``, or None where torchvision is missing or broken."""
    try:
        from torchvision import ops
    except Exception:  # a build for another PyTorch raises RuntimeError or OSError
        return None
    return ops


def working_dtype(tensor: Tensor) -> torch.dtype:
    """The type to compute in: float32 for half precision (and integers), else the tensor's own."""
    return torch.promote_types(tensor.dtype, torch.float32)
