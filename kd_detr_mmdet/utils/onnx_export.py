"""A detector as an ONNX graph: from a picture's pixels to boxes, scores and labels.

Exported by tracing (``torch.onnx.export(dynamo=False)``): the way through MMDetection's code that
one image takes is written down, at a fixed size. All of it is the detector's own code.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from mmdet.models.detectors import DDQDETR, DetectionTransformer
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from .errors import ConfigError

OPSET = 17  # deformable attention's GridSample came with 16, LayerNormalization with 17
INPUT, OUTPUTS = "image", ("boxes", "scores", "labels")
SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 0.1  # pixels
# Where the graph keeps a certain number of detections, float32 does not decide between two whose
# scores are closer than this.
SAME_SCORE = 1e-5


class Difference(NamedTuple):
    """The largest absolute differences between PyTorch's and ONNX Runtime's detections."""

    scores: float
    boxes: float  # pixels


class PictureDetector(nn.Module):
    """What becomes the graph: the detector's own ``test_step`` on one picture.

    Args:
        detector: In eval mode, on the CPU.
        size: Width and height of the picture in pixels.
    """

    def __init__(self, detector: BaseDetector, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.size = size

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects in an image.

        Args:
            image: (height, width, 3), uint8, RGB.

        Returns:
            Boxes (N, 4) as x1, y1, x2, y2 in pixels of the image, scores (N,) and labels (N,), the
            best score first.
        """
        width, height = self.size
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0)
            )
        )
        bgr = image.permute(2, 0, 1).flip(0)  # as MMDetection loads images
        found = self.detector.test_step(dict(inputs=[bgr], data_samples=[sample]))
        instances = found[0].pred_instances
        return instances.bboxes, instances.scores, instances.labels


def export_onnx(detector: BaseDetector, size: tuple[int, int], classes: tuple[str, ...]) -> bytes:
    """Write a detector down as an ONNX model.

    Args:
        detector: In eval mode, on the CPU.
        size: Width and height of the pictures in pixels.
        classes: Names of the labels, which the model carries as JSON in its metadata.

    Returns:
        bytes: The content of the .onnx file.

    Raises:
        ConfigError: If the detector or the size cannot be exported, or onnx is not installed.
    """
    onnx = _needed("onnx")
    _check_exportable(detector, size)
    width, height = size
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                PictureDetector(detector, size).eval(),
                (image,),
                buffer,
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
            )
    except Exception as error:  # an operator without a counterpart, or any fault of the tracer
        name = type(detector).__name__
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ConfigError(
            f"{name} cannot be exported to ONNX: {type(error).__name__}: {reason}"
        ) from error
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, dict(classes=json.dumps(classes)))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _check_exportable(detector: BaseDetector, size: tuple[int, int]) -> None:
    if not isinstance(detector, DetectionTransformer) or isinstance(detector, DDQDETR):
        raise ConfigError(
            f"{type(detector).__name__} cannot be exported to ONNX: its NonMaxSuppression leaves "
            "another number of boxes in each image, and MMDetection's code behind it keeps the "
            "number of the image that it is traced with"
        )
    divisor = getattr(detector.data_preprocessor, "pad_size_divisor", 1)
    if any(side % divisor or side < 1 for side in size):
        raise ConfigError(
            f"--size {size[0]} {size[1]}: the detector pads its images to multiples of {divisor} "
            f"pixels and hides the padding, which the graph does not: give multiples of {divisor}"
        )


def compare(detector: BaseDetector, model: bytes, images: Iterable[np.ndarray]) -> Difference:
    """Let PyTorch and ONNX Runtime look at the same pictures.

    Args:
        detector: What was exported.
        model: What :func:`export_onnx` gave.
        images: Of the size exported for: (height, width, 3), uint8, RGB.

    Returns:
        Difference: The largest over all pictures; see :func:`difference`.

    Raises:
        ConfigError: If onnxruntime is not installed.
    """
    runtime = _needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    worst = Difference(0.0, 0.0)
    for image in images:
        height, width = image.shape[:2]
        with torch.no_grad():
            found = PictureDetector(detector, (width, height))(torch.from_numpy(image))
        answer = session.run(list(OUTPUTS), {INPUT: image})
        new = difference([t.numpy() for t in found], answer)
        worst = Difference(*(max(pair) for pair in zip(worst, new)))
    return worst


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> Difference:
    """How far apart two lists of detections are.

    A detection is compared with that of the same label and, within the tolerance, of the same
    score whose box is nearest: equal scores have no order. For the same reason another box is
    allowed for a detection whose score is the lowest of all.

    Args:
        ours: Boxes (N, 4) in pixels, scores (N,) and labels (N,), the best score first.
        theirs: As many.

    Returns:
        Difference: Infinite where a detection has no counterpart, or a value is not finite.
    """
    (boxes, scores, labels), (other_boxes, other_scores, other_labels) = ours, theirs
    if scores.shape != other_scores.shape:
        return Difference(np.inf, np.inf)
    if not len(scores):
        return Difference(0.0, 0.0)
    apart = np.abs(boxes[:, None] - other_boxes[None]).max(-1)  # (N, N)
    same = (labels[:, None] == other_labels[None]) & (
        np.abs(scores[:, None] - other_scores[None]) <= SCORE_TOLERANCE
    )
    nearest = np.where(same & np.isfinite(apart), apart, np.inf).min(1)
    last = (scores <= scores[-1] + SAME_SCORE) & (nearest > BOX_TOLERANCE)
    of_boxes = nearest[~last].max(initial=0.0)
    of_scores = np.abs(scores - other_scores).max()
    return Difference(float(np.nan_to_num(of_scores, nan=np.inf)), float(of_boxes))


def check_equal(found: Difference) -> None:
    """Raise :class:`ConfigError` if a difference exceeds the tolerance."""
    if found.scores > SCORE_TOLERANCE or found.boxes > BOX_TOLERANCE:
        raise ConfigError(
            f"ONNX Runtime's detections differ from PyTorch's by {found.scores:.2g} in scores and "
            f"{found.boxes:.2g} pixels in boxes, more than {SCORE_TOLERANCE:g} and "
            f"{BOX_TOLERANCE:g}: nothing was written. On random pixels, or before training, many "
            "queries may score alike and change places: compare on pictures (--check IMAGE ...)"
        )


def noise(size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Pictures of random pixels, the same ones each time."""
    generator = np.random.default_rng(0)
    width, height = size
    return [generator.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def _needed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs {package}, which does not import ({error}): pip install -e '.[export]'"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that Python values become constants, as they should here.

    Where the exporter fails it prints its whole graph to the process's stdout, past Python's.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(stdout, 1)
            os.close(stdout)
