"""Steps whose loss or gradient is not finite: saved for inspection, and skipped by option."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import SampleList
from mmdet.structures.bbox import BaseBoxes
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..detectors import KDDETR
from ..detectors.kddetr import any_predictions_matched
from ..utils.errors import ConfigError, NonFiniteLossError
from ..utils.finite import check_finite, raise_everywhere

SKIPPED = "skipped_steps"


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """What becomes of a training step whose loss or gradient is NaN or infinite.

    Without this hook :class:`~kd_detr_mmdet.detectors.KDDETR` stops at such a loss, and no other
    detector does. With it every one does, the batch is saved, gradients are looked at as well, and
    up to ``skip`` steps in a run are left out
    as if their images had not been drawn: weights, optimiser and the statistics of batch norm stay
    as they were. All ranks of a distributed run leave out the same steps. The number so far stands
    in the log as ``skipped_steps`` and survives a resume.

    Looking at the gradients takes no time of its own: their norm is the one that clipping has just
    computed. Where nothing is clipped it is computed here, and the process waits for it, as
    MMEngine does for every term of the loss a moment later. Mixed precision is left to its
    gradient scaler, which leaves out such steps routinely while it looks for its scale.

    Args:
        skip: How many steps may be left out, 0 or more. The next one stops the run.
        save: Whether to save the batch as ``non_finite/iter_<iteration>_rank<rank>.pth`` in the
            work directory; see :func:`save_batch`.

    Raises:
        ConfigError: If ``skip`` is no such number.
        NonFiniteLossError: During training, if no step may be left out any more.
    """

    def __init__(self, skip: int = 0, save: bool = True) -> None:
        if not isinstance(skip, int) or isinstance(skip, bool) or skip < 0:
            raise ConfigError(f"NonFiniteHook: skip must be 0 or more, got {skip!r}")
        self.skip = skip
        self.save = save
        self._batch: dict[str, Any] | None = None
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        wrapped = runner.model
        model = wrapped.module if is_model_wrapper(wrapped) else wrapped
        step = wrapped.train_step
        if not isinstance(model, KDDETR):  # which looks at its losses itself
            model.loss = checked_loss(model)

        def train_step(data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
            statistics = batch_norm_statistics(model) if self.skip else []
            try:
                return step(data, optim_wrapper)
            except NonFiniteLossError as error:
                self._skip_or_stop(runner, error)
                for buffer, before in statistics:
                    buffer.copy_(before)
                return {}
            finally:
                self._batch = None

        wrapped.train_step = train_step  # of this instance, until the end of training
        self._handles = [model.register_forward_pre_hook(self._remember, with_kwargs=True)]
        if not isinstance(runner.optim_wrapper, AmpOptimWrapper):

            def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                norm = gradient_norm(runner.optim_wrapper)
                if not np.isfinite(norm):
                    optimizer.zero_grad()
                    raise_everywhere(
                        f"every loss is finite, but the norm of the gradient is {norm}",
                        self._batch["data_samples"],
                    )

            self._handles.append(runner.optim_wrapper.optimizer.register_step_pre_hook(look))

    def after_train(self, runner: Runner) -> None:
        del runner.model.train_step
        model = getattr(runner.model, "module", runner.model)
        vars(model).pop("loss", None)
        for handle in self._handles:
            handle.remove()

    def _remember(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._batch = kwargs

    def _skip_or_stop(self, runner: Runner, error: NonFiniteLossError) -> None:
        """Save the batch, and count the step; raise the error if it is one too many."""
        if self.save:
            name = f"iter_{runner.iter}_rank{get_rank()}.pth"
            path = Path(runner.work_dir, "non_finite", name)
            try:
                save_batch(path, runner.iter, error.what, self._batch)
                runner.logger.warning(f"the batch is saved in {path}")
            except (OSError, RuntimeError) as problem:  # a full disk must not end the run
                runner.logger.warning(f"the batch could not be saved: {problem}")
        hub = runner.message_hub  # which checkpoints hold
        skipped = hub.get_info(SKIPPED, 0)
        if skipped >= self.skip:
            if skipped:
                error.args = (f"{error} ({skipped} steps had been skipped before)",)
            raise error
        hub.update_info(SKIPPED, skipped + 1)
        hub.update_scalar(f"train/{SKIPPED}", skipped + 1)
        runner.logger.warning(f"step skipped ({skipped + 1} of at most {self.skip}): {error.what}")


def checked_loss(detector: BaseDetector) -> Callable[[Tensor, SampleList], dict[str, Any]]:
    """A detector's ``loss`` that stops every rank at a term that is not finite."""
    plain = detector.loss

    def loss(batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        with any_predictions_matched(detector):
            losses = plain(batch_inputs, batch_data_samples)
        check_finite(losses, batch_data_samples)
        return losses

    return loss


def batch_norm_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers that a forward pass in training mode changes, each with a copy."""
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training
        for buffer in module.buffers()
    ]
    return [(buffer, buffer.clone()) for buffer in buffers]


def gradient_norm(optim_wrapper: OptimWrapper) -> float:
    """The norm of all gradients: clipping's, where it has just computed one."""
    if optim_wrapper.clip_grad_kwargs and optim_wrapper.grad_name == "grad_norm":
        return optim_wrapper.message_hub.get_scalar("train/grad_norm").current()
    groups = optim_wrapper.optimizer.param_groups
    return float(nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], float("inf")))


def save_batch(path: Path, iteration: int, what: str, batch: dict[str, Any]) -> None:
    """Save a batch as the model got it, as data that ``torch.load(weights_only=True)`` reads.

    The file holds ``iteration``, ``what`` was not finite, ``inputs`` (bs, 3, H, W), and under
    ``samples`` a dict per image: ``metainfo`` (file, sizes, ...), ``gt_instances`` and
    ``ignored_instances`` with their ``bboxes`` (in pixels of ``inputs``) and ``labels``.

    Args:
        path: Its folder is made.
        iteration: Number of the step.
        what: What was not finite.
        batch: ``inputs`` and ``data_samples``.

    Raises:
        OSError, RuntimeError: If it cannot be written.
    """
    samples = []
    for sample in batch["data_samples"]:
        instances = {
            name: {field: _plain(value) for field, value in getattr(sample, name).items()}
            for name in ("gt_instances", "ignored_instances")
            if isinstance(getattr(sample, name, None), InstanceData)
        }
        samples.append(dict(metainfo=_plain(sample.metainfo), **instances))
    content = dict(iteration=iteration, what=what, inputs=batch["inputs"].cpu(), samples=samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def _plain(value: Any) -> Any:
    """A value made of tensors, numbers, strings and containers; of anything else its ``repr``."""
    if isinstance(value, BaseBoxes):
        value = value.tensor
    if torch.is_tensor(value):
        return value.detach().cpu()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
