"""Write the student to deploy: python tools/export.py CONFIG CHECKPOINT.

One file with the weights, the config and the classes of the student, and nothing of its training;
with --onnx also an ONNX model, which ONNX Runtime was seen to run as PyTorch does.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kd_detr_mmdet  # noqa: F401  isort: skip  (provides mmcv's operators, so before mmdet)

import mmcv
import numpy as np
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from kd_detr_mmdet.detectors.teacher import load_strictly
from kd_detr_mmdet.utils.cli import add_common_options, one_line_errors, read_config
from kd_detr_mmdet.utils.complexity import params_m
from kd_detr_mmdet.utils.configs import model_config
from kd_detr_mmdet.utils.deploy import class_names, inference_config, save_deployable
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.files import write_atomically
from kd_detr_mmdet.utils.onnx_export import (
    BOX_TOLERANCE,
    OPSET,
    SCORE_TOLERANCE,
    check_equal,
    compare,
    export_onnx,
    noise,
)

NOISE_IMAGES = 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config file: the distillation's or the student's own")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--out",
        type=Path,
        help="the file to write, less -<hash>.pth (default: the config's name, in the work "
        "directory)",
    )
    parser.add_argument("--onnx", action="store_true", help="write an ONNX model beside it")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("W", "H"),
        help="of the images that the ONNX model takes, in pixels",
    )
    parser.add_argument(
        "--check",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images to compare ONNX Runtime with PyTorch on, instead of random pixels",
    )
    parser.add_argument(
        "--trust", action="store_true", help="run whatever the checkpoint contains beside weights"
    )
    add_common_options(parser)
    return parser.parse_args()


def read_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """Read an image as the ONNX model takes it: (height, width, 3), uint8, RGB.

    Raises:
        ConfigError: If it is no image.
    """
    image = mmcv.imread(path)
    if image is None:
        raise ConfigError(f"--check: {path!r} is no image that OpenCV can read")
    return mmcv.imresize(mmcv.bgr2rgb(image), size)


def checked_onnx(
    detector: BaseDetector, classes: tuple[str, ...], args: argparse.Namespace
) -> bytes:
    """Export a detector to ONNX, and compare ONNX Runtime with PyTorch.

    Raises:
        ConfigError: If it cannot be exported, or the two differ by more than the tolerance.
    """
    size = tuple(args.size)
    images = [read_image(path, size) for path in args.check] or noise(size, NOISE_IMAGES)
    model = export_onnx(detector, size, classes)
    found = compare(detector, model, images)
    check_equal(found)
    print(
        f"ONNX Runtime against PyTorch, {len(images)} images: scores differ by {found.scores:.1e} "
        f"at most (allowed: {SCORE_TOLERANCE:g}), boxes by {found.boxes:.1e} pixels "
        f"({BOX_TOLERANCE:g})"
    )
    return model


def main() -> None:
    args = parse_args()
    if args.onnx != bool(args.size) or (args.check and not args.onnx):
        raise ConfigError(
            "--onnx and --size W H go together, and --check with them: an ONNX model is for images "
            "of one size"
        )
    whole = read_config(args)
    stem = args.out or Path(whole.work_dir, Path(args.config).stem)
    cfg = inference_config(whole)
    init_default_scope("mmdet")
    detector = MODELS.build(model_config(cfg)).eval()
    load_strictly(detector, args.checkpoint, what="checkpoint", trust=args.trust)
    classes = class_names(detector, cfg)
    model = checked_onnx(detector, classes, args) if args.onnx else None
    path = save_deployable(detector, cfg, classes, stem)
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {type(detector).__name__}, "
        f"{params_m(detector):.2f} M parameters, {len(classes)} classes"
    )
    if model is not None:
        width, height = args.size
        onnx = path.with_name(f"{path.stem}-{width}x{height}.onnx")
        write_atomically(onnx, model)
        print(
            f"{onnx}: {len(model) / 1e6:.1f} MB, ONNX opset {OPSET}, images of {width}x{height} "
            "pixels"
        )


if __name__ == "__main__":
    with one_line_errors():
        main()
