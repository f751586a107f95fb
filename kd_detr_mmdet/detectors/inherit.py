"""Start a student from parts of its teacher."""

from collections import Counter

import torch
from mmdet.models.detectors.base import BaseDetector
from mmengine.logging import print_log

from ..utils.errors import ConfigError


@torch.no_grad()
def inherit_weights(student: BaseDetector, teacher: BaseDetector, parts: list[str]) -> None:
    """Copy the teacher's weights into parts of the student, where names and shapes agree.

    Of a deeper teacher decoder the first layers are taken. What a part could not take, because the
    teacher has another width or no such weight, is logged and stays as it was initialised.

    Args:
        student: Its weights are changed in place.
        teacher: Where they come from.
        parts: Names of the student's modules, e.g. ``['encoder', 'decoder', 'bbox_head']``.

    Raises:
        ConfigError: If a part does not exist, or can take nothing.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    for part in parts:
        names = [name for name in own if name == part or name.startswith(part + ".")]
        if not names:
            modules = ", ".join(dict.fromkeys(name.split(".")[0] for name in own))
            raise ConfigError(
                f"inherit names {part!r}, but the student has no such part: it has {modules}"
            )
        outcome: Counter = Counter()
        for name in names:
            other = theirs.get(_counterpart(name, student, teacher))
            if other is None:
                outcome["not in the teacher"] += 1
            elif other.shape != own[name].shape:
                outcome["of another shape"] += 1
            else:
                own[name].copy_(other)
                outcome["taken"] += 1
        told = ", ".join(f"{count} {what}" for what, count in outcome.items())
        if not outcome["taken"]:
            raise ConfigError(f"inherit: {part!r} can take nothing from the teacher: {told}")
        print_log(f"inherited from the teacher: {part}: {told}", logger="current")


def _counterpart(name: str, student: BaseDetector, teacher: BaseDetector) -> str:
    """The teacher's name of a weight: a two-stage DETR's last head is the encoder's."""
    parts = name.split(".")
    both = [getattr(model, "decoder", None) for model in (student, teacher)]
    both = [getattr(decoder, "num_layers", None) for decoder in both]
    if parts[0] == "bbox_head" and parts[1].endswith("_branches") and parts[2] == str(both[0]):
        parts[2] = str(both[1])
    return ".".join(parts)
