"""Random state that survives a resume."""

import logging
import random

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Keeps the random state in checkpoints, so that a resumed run equals an uninterrupted one.

    Equality holds for epoch-based training that is resumed at the end of an epoch, on as many
    processes as before, with a data loader that has no workers, or workers that do not persist
    (MMEngine seeds them anew in each epoch). What else is resumed goes on too, with other draws:
    a warning says so. Validation leaves the state as it was.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._to_restore: list[dict] | None = None
        self._at_epoch_end: list[dict] | None = None  # one state per rank, until the next epoch
        self._before_val: dict | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # A best checkpoint is saved, and the last one once more, before validation is over; after
        # a resume that may be before any epoch, whose state is then the one to restore.
        state = self._before_val or get_random_state()
        checkpoint["random_state"] = self._to_restore or self._at_epoch_end or [state]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:  # and not for weights that merely start a new run
            self._to_restore = checkpoint.get("random_state")

    def before_train_epoch(self, runner: Runner) -> None:
        self._at_epoch_end = None
        if self._to_restore is None:
            return
        states, self._to_restore = self._to_restore, None
        if isinstance(states, dict):  # older checkpoints hold rank 0's alone
            states = [states]
        if runner.rank < len(states):
            set_random_state(states[runner.rank])
        if reason := _why_unequal(runner, len(states)):
            print_log(
                f"resumed, but not as if it had never been interrupted: {reason}",
                logger="current",
                level=logging.WARNING,
            )

    def after_train_epoch(self, runner: Runner) -> None:
        # Here, since every rank comes by, and a checkpoint is saved by rank 0 alone.
        self._at_epoch_end = all_gather_object(get_random_state())

    def before_val(self, runner: Runner) -> None:
        self._before_val = get_random_state()

    def after_val(self, runner: Runner) -> None:
        set_random_state(self._before_val)
        self._before_val = None


def _why_unequal(runner: Runner, num_states: int) -> str | None:
    """Why a resumed run will differ from an uninterrupted one, or None if it will not."""
    loader = runner.train_dataloader
    if runner.world_size != num_states:
        return f"it was trained by another number of processes than {runner.world_size}"
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return "training is not epoch-based"
    if runner.iter != runner.epoch * len(loader):
        return (
            f"the checkpoint is of iteration {runner.iter}, within an epoch of {len(loader)} "
            "iterations, which starts from its beginning"
        )
    if loader.persistent_workers:
        return "train_dataloader.persistent_workers=True: their augmentations start anew"
    return None


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
