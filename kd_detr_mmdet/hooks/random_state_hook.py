"""Random state that survives a resume."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Keeps the random state in checkpoints, so that a resumed run equals an uninterrupted one.

    Equality holds on one process for epoch-based training whose data loader has no workers, or
    workers that do not persist (MMEngine seeds them anew in each epoch). Rank 0's state is stored;
    the other ranks of a resumed run start from the seed. Validation leaves the state as it was.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._to_restore: dict | None = None
        self._before_val: dict | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint["random_state"] = get_random_state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:  # and not for weights that merely start a new run
            self._to_restore = checkpoint.get("random_state")

    def before_train_epoch(self, runner: Runner) -> None:
        if self._to_restore is not None and runner.rank == 0:
            set_random_state(self._to_restore)
        self._to_restore = None

    def before_val(self, runner: Runner) -> None:
        self._before_val = get_random_state()

    def after_val(self, runner: Runner) -> None:
        set_random_state(self._before_val)


def get_random_state() -> dict:
    """Random state of Python, NumPy and PyTorch, as values that any checkpoint can hold."""
    name, keys, *rest = np.random.get_state()
    return dict(
        python=random.getstate(),
        numpy=(name, keys.tolist(), *rest),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    )


def set_random_state(state: dict) -> None:
    """Put back what :func:`get_random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    # A checkpoint that was loaded to a GPU has brought the state along.
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
