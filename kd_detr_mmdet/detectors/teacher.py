"""The teacher: loaded in full, checked, frozen."""

import hashlib
from pathlib import Path

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.logging import print_log
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from ..families.dino import from_official
from ..utils.checkpoints import read_checkpoint
from ..utils.configs import DetectorSource, model_config
from ..utils.data import class_lists
from ..utils.errors import ConfigError, shorten

# From its first training step on, mmdet's DDQ-DETR saves these weights of its head once more.
SECOND_NAMES = ("decoder.aux_reg_branches.",)


def build_teacher(
    config: DetectorSource,
    checkpoint: str | Path | None,
    strict: bool = True,
    trust: bool = False,
) -> BaseDetector:
    """Build a teacher that only ever answers.

    It is in eval mode, no parameter asks for a gradient, and it never calls ``init_weights``: what
    a config names under ``init_cfg`` is not downloaded, every weight comes from the checkpoint.

    Args:
        config: See :func:`~kd_detr_mmdet.utils.configs.model_config`.
        checkpoint: Path or URL of the detector's weights. None leaves the teacher at random, which
            teaches nothing: for tests of everything around it.
        strict: Whether every key must be there, and no other. With False the keys that do not
            match are logged.
        trust: Whether to run whatever the checkpoint contains; see
            :func:`~kd_detr_mmdet.utils.checkpoints.read_checkpoint`.

    Returns:
        BaseDetector: The detector, with ``checkpoint_info``: where its weights came from, the
        file's sha256 (None for a URL), and the classes it was trained on (None if not stored).

    Raises:
        ConfigError: If the config or the checkpoint cannot be read, or they do not fit.
    """
    teacher = MODELS.build(model_config(config, "teacher.config"))
    teacher.checkpoint_info = dict(source=checkpoint, sha256=None, classes=None)
    if checkpoint is None:
        print_log(
            "teacher.checkpoint is None: the teacher keeps random weights and teaches nothing",
            logger="current",
            level=30,
        )
        if hasattr(teacher, "level_embed"):  # mmdet leaves it to init_weights: maybe NaN till then
            torch.nn.init.normal_(teacher.level_embed)
    else:
        load_strictly(teacher, str(checkpoint), strict, trust=trust)
    return teacher.eval().requires_grad_(False)


class TeacherPixels:
    """From images as the student gets them to images as the teacher was trained on.

    Mean, standard deviation and colour order may differ. Padding stays where the student's
    preprocessor put it, since a detection transformer takes any size.

    Args:
        ours: The student's data preprocessor.
        theirs: The teacher's; one that does not normalise images (MMEngine's default for a config
            that names none) is taken to be the student's.

    Attributes:
        same: Whether nothing is done.
        padding: The teacher's pixel value around images.

    Raises:
        ConfigError: If the numbers of channels differ.
    """

    def __init__(self, ours: nn.Module, theirs: nn.Module) -> None:
        self.same = not isinstance(theirs, ImgDataPreprocessor)
        self.padding = float(getattr(ours if self.same else theirs, "pad_value", 0))
        if self.same:
            return
        (mean, std, swaps), (other_mean, other_std, other_swaps) = map(_statistics, (ours, theirs))
        if mean.numel() != other_mean.numel():
            raise ConfigError(
                f"student and teacher see the same images, but their data_preprocessors have "
                f"{mean.numel()} and {other_mean.numel()} channels: give both as many"
            )
        if swaps != other_swaps:  # the student's channels, seen in the teacher's order
            mean, std = mean.flip(0), std.flip(0)
        self.flips = swaps != other_swaps
        self.scale = (std / other_std).view(-1, 1, 1)
        self.shift = ((mean - other_mean) / other_std).view(-1, 1, 1)
        self.same = (
            not self.flips
            and torch.equal(mean, other_mean)
            and torch.equal(std, other_std)
            and getattr(ours, "pad_value", self.padding) == self.padding
        )

    def __call__(self, images: Tensor, samples: SampleList) -> Tensor:
        """Normalise images (bs, C, H, W) anew; the very same tensor where nothing differs."""
        if self.same:
            return images
        images = images.flip(1) if self.flips else images
        images = images * self.scale.to(images) + self.shift.to(images)
        for image, sample in zip(images, samples):
            height, width = sample.img_shape[:2]
            image[:, height:] = self.padding
            image[:, :, width:] = self.padding
        return images


def _statistics(preprocessor: nn.Module) -> tuple[Tensor, Tensor, bool]:
    """Mean and standard deviation of each channel (C), and whether colours are swapped."""
    mean, std = (getattr(preprocessor, name, None) for name in ("mean", "std"))
    swaps = bool(getattr(preprocessor, "_channel_conversion", False))
    if mean is None:
        return torch.zeros(3), torch.ones(3), swaps
    return mean.flatten().cpu(), std.flatten().cpu(), swaps


def load_strictly(
    detector: BaseDetector,
    checkpoint: str,
    strict: bool = True,
    what: str = "teacher.checkpoint",
    trust: bool = False,
) -> None:
    """Load a detector's weights, and note their origin in ``detector.checkpoint_info``.

    Args:
        detector: What to load into.
        checkpoint: Path or URL.
        strict: Whether missing and unexpected keys are an error, or only logged. Shapes must
            always agree.
        what: The option that named the checkpoint, for messages.
        trust: Whether to run whatever the checkpoint contains.

    Raises:
        ConfigError: If the file is missing, unreadable, or of another architecture.
    """
    content = read_checkpoint(checkpoint, what, trust)
    weights = from_official(weights_of(content), detector)
    own = detector.state_dict()
    problems = {
        # Checkpoints from before PyTorch counted batches lack these, and inference needs none.
        "missing": sorted(k for k in own.keys() - weights if "num_batches_tracked" not in k),
        "unexpected": sorted(weights.keys() - own.keys()),
    }
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
    told = [f"{len(keys)} {what}: {shorten(keys)}" for what, keys in problems.items() if keys]
    if shapes:
        told.append(f"{len(shapes)} of another shape: {shorten(shapes)}")
    if told:
        message = (
            f"{what} {checkpoint!r} does not fit the config ({type(detector).__name__}): "
            + "; ".join(told)
        )
        if shapes or strict:
            raise ConfigError(f"{message}. Take the config that the checkpoint was trained with")
        print_log(f"{message} (strict=False)", logger="current", level=30)
    detector.load_state_dict(weights, strict=False)

    meta = content.get("meta") or {}
    classes = class_lists(meta.get("dataset_meta") or meta)
    path = Path(checkpoint).expanduser()
    detector.checkpoint_info = dict(
        source=checkpoint,
        sha256=_sha256(path) if path.is_file() else None,
        classes=classes[0] if len(classes) == 1 else None,
    )


def weights_of(content: dict) -> dict[str, Tensor]:
    """The weights in a checkpoint's content, by a plain detector's names."""
    weights = content.get("state_dict", content)
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    return {name: value for name, value in plain.items() if not name.startswith(SECOND_NAMES)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
