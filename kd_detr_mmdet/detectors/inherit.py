"""Start a student from a checkpoint, or from parts of its teacher."""

from pathlib import Path

import torch
from mmdet.models.detectors.base import BaseDetector
from mmengine.logging import print_log
from torch import Tensor

from ..families.dino import from_official
from ..utils.checkpoints import read_checkpoint
from ..utils.configs import DetectorSource, names_config
from ..utils.errors import ConfigError, shorten
from .teacher import weights_of


def student_options(student: DetectorSource) -> dict:
    """What ``student=dict(config=..., checkpoint=..., trust=False)`` says beside the config.

    Raises:
        ConfigError: If it says anything else.
    """
    if not names_config(student):
        if isinstance(student, dict) and "type" in student and "checkpoint" in student:
            raise ConfigError(
                "student.checkpoint stands beside the detector's own options: write "
                "student=dict(config=..., checkpoint=PATH) with the detector under config"
            )
        return dict(checkpoint=None, trust=False)
    options = {name: value for name, value in student.items() if name != "config"}
    checkpoint = options.setdefault("checkpoint", None)
    known = set(options) <= {"checkpoint", "trust"}
    if not known or not isinstance(checkpoint, (str, Path, type(None))):
        raise ConfigError(
            "student must be a config, or dict(config=..., checkpoint=PATH, trust=False), got "
            f"{sorted(student)} with checkpoint {checkpoint!r}"
        )
    return options


def start_from(student: BaseDetector, checkpoint: str | Path | None, trust: bool = False) -> None:
    """Load a checkpoint's weights into a student, where names and shapes agree.

    What matched and what did not is logged, as a warning where the student has weights of another
    shape (a head for other classes) or that the file lacks: those stay as they were initialised.

    Args:
        student: Its weights are changed in place.
        checkpoint: Path or URL, of any detector; None for nothing.
        trust: Whether to run whatever the checkpoint contains.

    Raises:
        ConfigError: If the file is missing, unreadable, more than data, or nothing in it fits.
    """
    if checkpoint is None:
        return
    what = "student.checkpoint"
    weights = from_official(weights_of(read_checkpoint(str(checkpoint), what, trust)), student)
    own = student.state_dict()
    fits, told = _take(own, {name: weights.get(name) for name in own}, "not in the file")
    unused = sorted(weights.keys() - own.keys())
    if unused:
        told += f", {len(unused)} of the file not in the student: {shorten(unused)}"
    if not fits:
        raise ConfigError(
            f"{what} {str(checkpoint)!r} holds nothing for this student "
            f"({type(student).__name__}): {told}. Weights of a backbone alone go into its init_cfg"
        )
    level = 20 if fits == len(own) else 30
    print_log(f"{what} {str(checkpoint)!r}: {told}", logger="current", level=level)


def inherit_weights(student: BaseDetector, teacher: BaseDetector, parts: list[str]) -> None:
    """Copy the teacher's weights into parts of the student, where names and shapes agree.

    Of a deeper teacher decoder the first layers are taken. What a part could not take, because the
    teacher has another width or no such weight, is logged and stays as it was.

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
        others = {name: theirs.get(_counterpart(name, student, teacher)) for name in names}
        fits, told = _take(own, others, "not in the teacher")
        if not fits:
            raise ConfigError(f"inherit: {part!r} can take nothing from the teacher: {told}")
        print_log(f"inherited from the teacher: {part}: {told}", logger="current")


@torch.no_grad()
def _take(own: dict[str, Tensor], others: dict[str, Tensor | None], absent: str) -> tuple[int, str]:
    """Copy weights of equal shape; how many there were, and what became of all, in words."""
    missing = [name for name, other in others.items() if other is None]
    shapes, taken = [], 0
    for name, other in others.items():
        if other is None:
            continue
        if other.shape == own[name].shape:
            own[name].copy_(other)
            taken += 1
        else:
            shapes.append(f"{name} {tuple(other.shape)} instead of {tuple(own[name].shape)}")
    told = f"{taken} taken"
    for names, why in ((shapes, "of another shape"), (missing, absent)):
        if names:
            told += f", {len(names)} {why}: {shorten(names)}"
    return taken, told


def _counterpart(name: str, student: BaseDetector, teacher: BaseDetector) -> str:
    """The teacher's name of a weight.

    After one head for each decoder layer come the encoder's, in two stages, and DDQ-DETR's for
    dense queries: these are counted from where the decoder's end.
    """
    parts = name.split(".")
    if parts[0] == "bbox_head" and parts[1].endswith("_branches"):
        depth, other = (model.decoder.num_layers for model in (student, teacher))
        if parts[2].isdigit() and int(parts[2]) >= depth:
            parts[2] = str(int(parts[2]) - depth + other)
    return ".".join(parts)
