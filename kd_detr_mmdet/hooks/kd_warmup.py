"""Weights of the distillation that change in the course of training."""

import math

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..detectors import KDDETR
from ..utils.errors import ConfigError, check_choice

DECAYS = ("none", "linear", "cosine")


@HOOKS.register_module()
class KDWarmup(Hook):
    """Ramps the distillation up, and decays it or switches it off.

    Every distillation loss is multiplied by one factor, which the log shows as ``kd_factor``. It
    depends on the iteration alone: a resumed run goes on with it, and all ranks have the same.
    Where it is 0 the teacher is not run, and a step costs what the plain student's does.

    (MMEngine's parameter schedulers change what an optimiser keeps for its parameters; these
    weights are none of it.)

    Args:
        warmup: How long the factor takes to rise linearly from 0 to 1.
        off: From when on it is 0. None: never.
        decay: How it gets there: ``'none'`` at once, ``'linear'`` or ``'cosine'`` from
            ``decay_from`` on.
        decay_from: When the decay begins; None: after ``warmup``.
        by_epoch: Whether the times are epochs, with fractions in between, or iterations.

    Raises:
        ConfigError: If an argument is out of range, they do not fit each other or, before training,
            ``off`` does not fit its length.
    """

    def __init__(
        self,
        warmup: float = 0,
        off: float | None = None,
        decay: str = "none",
        decay_from: float | None = None,
        by_epoch: bool = False,
    ) -> None:
        check_choice("KDWarmup.decay", decay, DECAYS)
        if not isinstance(by_epoch, bool):
            raise ConfigError(f"KDWarmup.by_epoch must be True or False, got {by_epoch!r}")
        for name, value in (("warmup", warmup), ("off", off), ("decay_from", decay_from)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value < math.inf):
                raise ConfigError(f"KDWarmup.{name} must be at least 0, got {value!r}")
        if not warmup and off is None:
            raise ConfigError("KDWarmup leaves the weights as they are: set warmup or off")
        if decay == "none" and decay_from is not None:
            raise ConfigError("KDWarmup.decay_from needs decay='linear' or 'cosine'")
        if decay != "none" and off is None:
            raise ConfigError(f"KDWarmup.decay={decay!r} needs off, where the factor has become 0")
        begin = warmup if decay_from is None else decay_from
        if off is not None and not warmup <= begin < off:
            raise ConfigError(
                f"KDWarmup needs warmup <= decay_from < off, got {warmup}, {begin} and {off}"
            )
        self.warmup, self.off, self.decay, self.by_epoch = warmup, off, decay, by_epoch
        self.decay_from = begin

    def factor(self, time: float) -> float:
        """The factor at a time of training, in [0, 1]."""
        if time < self.warmup:
            return time / self.warmup
        if self.off is None or (self.decay == "none" and time < self.off):
            return 1.0
        if time >= self.off:
            return 0.0
        progress = max(time - self.decay_from, 0) / (self.off - self.decay_from)
        if self.decay == "linear":
            return 1 - progress
        return (1 + math.cos(math.pi * progress)) / 2

    def before_train(self, runner: Runner) -> None:
        if not isinstance(_model(runner), KDDETR):
            raise ConfigError("KDWarmup is for a distillation: the config's model is no KDDETR")
        if self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ConfigError("KDWarmup.by_epoch=True needs training by epochs: count iterations")
        if self.off is None:
            return
        end = runner.max_epochs if self.by_epoch else runner.max_iters
        if self.off > end or (self.off == end and self.decay == "none"):
            raise ConfigError(
                f"KDWarmup.off={self.off:g} is never reached, since training ends after {end}: "
                "lower it, or leave it out to distil to the end"
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        length = len(runner.train_dataloader) if self.by_epoch else 1
        factor = self.factor(runner.iter / length)
        _model(runner).distill_factor = factor
        runner.message_hub.update_scalar("train/kd_factor", factor)


def _model(runner: Runner) -> object:
    return getattr(runner.model, "module", runner.model)
