"""Random numbers that the student's own training must not notice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def preserved_rng(device: torch.device | str = "cpu") -> Iterator[None]:
    """Put PyTorch's random state (CPU and ``device``) back on leaving the context."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
