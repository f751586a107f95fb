"""What the log says of a distillation."""

import re

from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

# In the back-ends only: six decoder layers make 72 of them.
NOT_ON_THE_CONSOLE = re.compile(r"(d\d+\.)?kd_raw_|d\d+\.kd_loss_")


@HOOKS.register_module()
class DistillLogHook(Hook):
    """Adds to the log, where MMEngine's LoggerHook writes a line of it:

    * ``kd_share``: what part of the total loss is distillation;
    * ``kd_foreground_<set>``: the mean foreground weight of a set's points;
    * ``kd_raw_<set>_<term>``: every term before its weights, as ``kd_loss_<set>_<term>`` is named.

    These are values of that iteration; losses are means over the log's window. All of it goes to
    MMEngine's back-ends (JSON, TensorBoard, ...). The console's line leaves out raw terms and those
    of decoder layers before the last.
    """

    priority = "NORMAL"  # before LoggerHook, after RuntimeInfoHook

    def before_train(self, runner: Runner) -> None:
        self._intervals = [h.interval for h in runner.hooks if isinstance(h, LoggerHook)]
        shorten_console(runner.log_processor)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: object = None,
        outputs: dict | None = None,
    ) -> None:
        due = any(self.every_n_inner_iters(batch_idx, interval) for interval in self._intervals)
        if not due and not self.end_of_epoch(runner.train_dataloader, batch_idx):
            return  # reading a value waits for the device
        if "loss" not in outputs:
            return  # NonFiniteHook has left this step out
        model = getattr(runner.model, "module", runner.model)
        distillation = sum(value for name, value in outputs.items() if "kd_loss" in name)
        values = {"kd_share": distillation / outputs["loss"], **model.diagnostics}
        for name, value in values.items():
            runner.message_hub.update_scalar(f"train/{name}", value)


def shorten_console(processor: object) -> None:
    """Make this LogProcessor leave details out of the console's line, not of its scalars."""
    in_full = processor.get_log_after_iter

    def get_log_after_iter(runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        scalars, line = in_full(runner, batch_idx, mode)
        kept = [item for item in line.split("  ") if not NOT_ON_THE_CONSOLE.match(item)]
        return scalars, "  ".join(kept)

    processor.get_log_after_iter = get_log_after_iter
