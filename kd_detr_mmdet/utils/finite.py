"""Numbers that are not finite: found on every rank at once, before they reach the weights."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from mmdet.structures import SampleList
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

from .errors import NonFiniteLossError


def check_finite(losses: dict[str, Any], batch_data_samples: SampleList) -> None:
    """Stop before a NaN reaches the weights.

    All ranks of a distributed run stop at the same step, so that none waits for another. It costs
    one look at the device, for all terms, and one reduction of one number.

    Raises:
        NonFiniteLossError: Naming every term that is not finite, the iteration and the images.
    """
    terms = {}
    for name, value in losses.items():
        if "loss" in name:
            parts = [value] if torch.is_tensor(value) else value
            terms[name] = torch.stack([part.detach().float().sum() for part in parts]).sum()
    bad = 1 - torch.stack(list(terms.values())).isfinite().all().int()
    all_reduce(bad, "max")
    if not bad:
        return
    values = {name: value.item() for name, value in terms.items()}
    wrong = {name: v for name, v in values.items() if not terms[name].isfinite()}
    raise_everywhere(", ".join(f"{name} = {v}" for name, v in wrong.items()), batch_data_samples)


def raise_everywhere(what: str, batch_data_samples: SampleList) -> NoReturn:
    """Raise one and the same error on every rank; all of them must call this.

    Args:
        what: What is not finite on this rank; empty if nothing is.
        batch_data_samples: The images that this rank looked at.

    Raises:
        NonFiniteLossError: With what each rank found, and its images. A NaN on one rank can spread
            by sums over all: the ill one has the most terms.
    """
    found = all_gather_object(f"{what} {_images(batch_data_samples)}" if what else "")
    found = [
        f"{told} of rank {rank}" if get_world_size() > 1 else told
        for rank, told in enumerate(found)
        if told
    ]
    iteration = MessageHub.get_current_instance().get_info("iter", "unknown")
    raise NonFiniteLossError(f"at iteration {iteration}: {'; '.join(found)}")


def _images(batch_data_samples: SampleList) -> str:
    ids = ", ".join(str(s.get("img_id", "?")) for s in batch_data_samples)
    files = [str(s.img_path) for s in batch_data_samples if s.get("img_path")]
    return f"with image ids {ids}" + (f" ({', '.join(files)})" if files else "")


def matching_despite_nan(assign: Callable) -> Callable:
    """Make a Hungarian assigner's ``assign`` take predictions that are not finite.

    SciPy refuses to match them. Raised in the middle of a loss, on one rank of several, that error
    would leave the others waiting in a reduction. They are matched as if they were zero; the loss,
    which sees them as they are, is not finite then, and :func:`check_finite` stops the step.
    """

    def assign_anyway(*args: Any, **kwargs: Any) -> Any:
        try:
            return assign(*args, **kwargs)
        except ValueError:  # "matrix contains invalid numeric entries", or "is infeasible"
            args = [_zero_where_not_finite(value) for value in args]
            kwargs = {name: _zero_where_not_finite(value) for name, value in kwargs.items()}
            return assign(*args, **kwargs)

    return assign_anyway


def _zero_where_not_finite(value: Any) -> Any:
    if isinstance(value, InstanceData):
        fields = {name: _zero_where_not_finite(field) for name, field in value.items()}
        return InstanceData(metainfo=value.metainfo, **fields)
    if torch.is_tensor(value) and value.is_floating_point():
        return value.nan_to_num(0, 0, 0)
    return value
