"""How the teacher is run: what lowers its share of a training step."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from ..families.base import swapped
from ..utils.errors import ConfigError, check_choice

DTYPES = ("float32", "bfloat16", "float16")
COMPILED = ("backbone", "neck", "encoder")  # of equal shapes in every step if the images are


class TeacherAtWork:
    """Shows the teacher its images and lets it answer, as cheaply as its options allow.

    Its weights stay as they are. In half precision autocast chooses the operators instead: with
    half-precision *weights* mmdet's detectors do not run (positional encodings are float32), and
    boxes would be as coarse as 1/256 of the image. The head, which makes logits and boxes of
    features, and every sum of coordinates stay in float32.

    Args:
        teacher: The frozen detector.
        padding: The pixel value that its images are padded with.
        dtype: ``'bfloat16'`` or ``'float16'`` for what can run in it; ``'float32'`` for none of
            it, whatever the student trains in. None follows the student: float32, or what
            ``--amp`` says.
        channels_last: Whether weights and images are laid out with channels last, which suits
            convolutions on some devices. Values are the same.
        compile: Whether ``torch.compile`` prepares backbone, neck and encoder, at the first look;
            on a CPU it needs a C++ compiler. A dict holds arguments of ``torch.compile``.
        scale: Factor of the sides of the teacher's images, above 0 and at most 1. Boxes are
            relative to the image and stay what they are.

    Raises:
        ConfigError: If an option is none of these.
    """

    def __init__(
        self,
        teacher: BaseDetector,
        padding: float = 0.0,
        dtype: str | None = None,
        channels_last: bool = False,
        compile: bool | dict = False,
        scale: float = 1.0,
    ) -> None:
        if dtype is not None:
            check_choice("teacher.dtype", dtype, DTYPES)
        if not isinstance(channels_last, bool):
            raise ConfigError(f"teacher.channels_last must be True or False, got {channels_last!r}")
        if not isinstance(compile, (bool, dict)):
            raise ConfigError(
                "teacher.compile must be True, False or a dict of torch.compile's arguments, got "
                f"{compile!r}"
            )
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if not number or not 0 < scale <= 1:
            raise ConfigError(
                f"teacher.scale must be a number above 0 and at most 1, got {scale!r}"
            )
        self.teacher = teacher
        self.padding = padding
        self.dtype = dtype
        self.channels_last = channels_last
        self.compile = compile
        self.scale = scale
        self._compiled = False
        if channels_last:
            teacher.to(memory_format=torch.channels_last)

    def images(self, images: Tensor, samples: SampleList) -> tuple[Tensor, SampleList]:
        """The images (bs, C, H, W) and their meta information as the teacher is shown them."""
        if self.scale != 1:
            images, samples = shrink(images, samples, self.scale, self.padding)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.compile and not self._compiled:
            # Not earlier: what counts FLOPs before training must see operators.
            for part in COMPILED:
                if (module := getattr(self.teacher, part, None)) is not None:
                    module.compile(**(self.compile if isinstance(self.compile, dict) else {}))
            self._compiled = True
        return images, samples

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within the context the teacher runs, without gradients and in its precision.

        Raises:
            ConfigError: If it cannot be compiled, or this device has no such precision.
        """
        device = next(self.teacher.parameters()).device.type
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                if self.dtype is not None:
                    dtype = getattr(torch, self.dtype)
                    half = dtype != torch.float32
                    # The default of a disabled autocast is not used.
                    stack.enter_context(
                        torch.autocast(device, dtype if half else None, enabled=half)
                    )
                if torch.is_autocast_enabled(device):
                    stack.enter_context(in_float32(self.teacher.bbox_head, device))
                yield
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
            raise ConfigError(
                f"teacher.compile: the teacher cannot be compiled here ({reason}). On a CPU "
                "torch.compile needs a C++ compiler; leave teacher.compile out to do without"
            ) from error
        except RuntimeError as error:
            if "not implemented for 'Half'" not in str(error):
                raise
            raise ConfigError(
                f"teacher.dtype='float16': this {device} lacks operators in float16 ({error}). "
                "Take 'bfloat16'"
            ) from error

    def __str__(self) -> str:
        """The options in words, empty if all are the defaults."""
        told = [self.dtype] if self.dtype else []
        told += ["channels last"] * self.channels_last + ["compiled"] * bool(self.compile)
        told += [f"images scaled by {self.scale:g}"] * (self.scale != 1)
        return ", ".join(told)


@contextmanager
def in_float32(head: nn.Module, device: str) -> Iterator[None]:
    """Within the context, linear layers of a head compute in the type of their weights."""

    def forward(layer: nn.Linear, features: Tensor) -> Tensor:
        with torch.autocast(device, enabled=False):
            return F.linear(features.to(layer.weight.dtype), layer.weight, layer.bias)

    with ExitStack() as stack:
        for module in head.modules():
            if isinstance(module, nn.Linear):
                stack.enter_context(swapped(module, "forward", partial(forward, module)))
        yield


def shrink(
    images: Tensor, samples: SampleList, scale: float, padding: float = 0.0
) -> tuple[Tensor, SampleList]:
    """Smaller images in which every relative box is still the same place.

    Each image is resized without its padding, so a box in [0, 1] of the valid image stays one, and
    padding never mixes with the picture.

    Args:
        images: Padded images, shape (bs, C, H, W).
        samples: Their meta information, with ``img_shape``.
        scale: Factor of the sides, above 0 and at most 1.
        padding: Pixel value around the smaller images.

    Returns:
        tuple: Images (bs, C, ceil(scale * H), ceil(scale * W)), and samples that hold nothing but
        the new ``img_shape``, ``batch_input_shape`` and ``pad_shape``.
    """
    canvas = tuple(-int(-side * scale // 1) for side in images.shape[-2:])  # rounded up
    small = images.new_full((*images.shape[:2], *canvas), padding)
    shrunk = []
    for image, target, sample in zip(images, small, samples):
        height, width = sample.img_shape[:2]
        size = tuple(max(1, round(side * scale)) for side in (height, width))
        target[:, : size[0], : size[1]] = F.interpolate(
            image[None, :, :height, :width], size=size, mode="bilinear", antialias=True
        )[0]
        meta = dict(img_shape=size, batch_input_shape=canvas, pad_shape=canvas)
        shrunk.append(DetDataSample(metainfo=meta))
    return small, shrunk
