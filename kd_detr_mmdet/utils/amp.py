"""Mixed precision: MMEngine's float16 on a GPU, and bfloat16 on any device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import autocast
from torch import nn

from .errors import ConfigError

AMP_DTYPES = ("float16", "bfloat16")


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Trains in bfloat16, on a CPU as well, which MMEngine's ``AmpOptimWrapper`` refuses.

    Bfloat16 has the range of float32, so losses need no scaling. Weights, their gradients and the
    optimiser's state stay in float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Within the context, operators that gain from it run in bfloat16."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def use_amp(cfg: Config, dtype: str) -> None:
    """Make a config train in mixed precision; its ``optim_wrapper`` is changed in place.

    Args:
        cfg: A whole config.
        dtype: One of ``AMP_DTYPES``.

    Raises:
        ConfigError: If float16 is asked for and there is no GPU.
    """
    wrapper = cfg.optim_wrapper
    if dtype == "bfloat16":
        wrapper.type = BFloat16OptimWrapper.__name__
        for key in ("dtype", "loss_scale"):  # of an AmpOptimWrapper
            wrapper.pop(key, None)
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            "--amp needs a GPU for float16: gradients underflow without MMEngine's loss scaling, "
            "which a CPU does not have. Take --amp bfloat16"
        )
    wrapper.update(type="AmpOptimWrapper", dtype=dtype)
    wrapper.setdefault("loss_scale", "dynamic")
