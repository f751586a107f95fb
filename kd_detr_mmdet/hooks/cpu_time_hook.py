"""The processor time of a training step, for runs that share their machine."""

import time

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class CpuTimeHook(Hook):
    """Logs ``cpu_time``: the seconds of processor time of an iteration, loading its data included.

    On a CPU the wall clock also counts what other processes take. With one thread this is what the
    step itself costs, however busy the machine is.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        self._last = time.process_time()

    def after_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        now = time.process_time()
        runner.message_hub.update_scalar("train/cpu_time", now - self._last)
        self._last = now

    def after_val_epoch(self, runner: Runner, *args: object, **kwargs: object) -> None:
        self._last = time.process_time()  # iteration-based training evaluates between its steps
