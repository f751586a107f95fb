"""The evaluation that an interruption took from a run, made up for when it is resumed."""

from itertools import takewhile

from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..utils.runs import scalars


@HOOKS.register_module()
class ResumedValidationHook(Hook):
    """Evaluates what a run is resumed from, if that was due and its work directory has no such AP.

    MMEngine saves a checkpoint before it evaluates it, and evaluates nothing when it resumes: a
    run that was stopped in between would lack a point of its learning curve, perhaps its best or
    its last one, for good.
    """

    priority = "LOWEST"  # the other hooks are ready by then

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        if not runner._resume or runner.val_loop is None or not loop.iter:
            return
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if by_epoch and loop.iter != loop.epoch * len(loop.dataloader):
            return  # within an epoch, which starts from its beginning
        done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        loop._decide_current_val_interval()
        if done < loop.val_begin or (done % loop.val_interval and done != end):
            return
        known = [is_logged(runner)]  # rank 0 logs, perhaps where the others cannot read
        broadcast_object_list(known)
        if not known[0]:
            runner.logger.info(f"resumed before it was evaluated: validating step {done} first")
            runner.val_loop.run()


def is_logged(runner: Runner) -> bool:
    """Whether the work directory has an evaluation of the iteration that a run has come to."""
    until = takewhile(lambda row: row.get("iter", 0) <= runner.iter, scalars(runner.work_dir))
    rows = list(until)
    loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
    by_epoch = all(logger.log_metric_by_epoch for logger in loggers)
    if by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
        # All of them are logged as of epoch 0: the last one counts if nothing was trained since.
        return bool(rows) and "iter" not in rows[-1]
    step = runner.epoch if by_epoch else runner.iter
    return any("iter" not in row and row.get("step") == step for row in rows)
