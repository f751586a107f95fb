"""Is the teacher as good as it should be, where it teaches? python tools/check_teacher.py CONFIG.

CONFIG is a distillation's. Its teacher is evaluated once on the validation data as the student gets
them: the student's preprocessing and image size, the teacher's options, the shared classes. If its
AP is far from the one that the config states, teacher=dict(..., ap=50.1), the exit code is 1.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import init_default_scope

from kd_detr_mmdet.detectors import KDDETR
from kd_detr_mmdet.hooks.report_hook import check_classes
from kd_detr_mmdet.utils.benchmark import quiet
from kd_detr_mmdet.utils.cli import add_common_options, one_line_errors, read_config
from kd_detr_mmdet.utils.configs import is_kd_model
from kd_detr_mmdet.utils.data import check_data
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.evaluation import evaluate, teacher_in_front

TOLERANCE, TOLERANCE_OF_FEW = 2.0, 10.0  # in AP; few images scatter
# Options of the teacher that change nothing in what it says.
SILENT_OPTIONS = ("config", "checkpoint", "trust", "ap")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config of a distillation")
    parser.add_argument("--images", type=int, help="a quick look at so many images")
    parser.add_argument(
        "--tolerance",
        type=float,
        help=f"how far AP may be from what the config states, in percentage points (default "
        f"{TOLERANCE:g}, with --images {TOLERANCE_OF_FEW:g})",
    )
    add_common_options(parser)
    return parser.parse_args()


def build(cfg: Config) -> KDDETR:
    """The distillation, ready to be asked, with its classes compared.

    Raises:
        ConfigError: If the config is no distillation's, or its teacher is untrained.
    """
    if not is_kd_model(cfg.model):
        raise ConfigError("the config is not a distillation's: its model is no KDDETR")
    for key in ("val_dataloader", "val_evaluator"):
        if not cfg.get(key):
            raise ConfigError(f"the config has no {key!r} to evaluate the teacher on")
    check_data(cfg, ("val_dataloader",))
    init_default_scope("mmdet")
    with quiet():
        model = MODELS.build(cfg.model).eval()
    if model.teacher.checkpoint_info["source"] is None:
        raise ConfigError("teacher.checkpoint is None: a teacher with random weights has no AP")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def likely_reasons(cfg: Config, model: KDDETR, classes: tuple, shared: tuple) -> list[str]:
    """What may set the AP here apart from the one that the config states, the likeliest first."""
    theirs, info = model.teacher.data_preprocessor, model.teacher.checkpoint_info
    options = {k: v for k, v in cfg.model.teacher.items() if k not in SILENT_OPTIONS}
    reasons = []
    if options:
        told = ", ".join(f"{name}={value!r}" for name, value in options.items())
        reasons.append(f"the teacher's options ({told}) change what it says: try without them")
    if not isinstance(theirs, ImgDataPreprocessor):
        reasons.append(
            "the teacher's config names no data_preprocessor, so it gets pixels normalised as the "
            "student's: was it trained on such?"
        )
    elif not model._teacher_pixels.same:
        reasons.append(
            "student and teacher normalise pixels in two ways, and the teacher gets its own: is "
            "the data_preprocessor in its config the one that it was trained with?"
        )
    if info["classes"] is None:
        reasons.append(
            f"the checkpoint does not tell the teacher's classes: are they the data's "
            f"{len(classes)}, in the same order?"
        )
    if model.class_map.option is not None:
        reasons.append(f"class_map: AP is that of the shared classes alone: {', '.join(shared)}")
    reasons += [
        "the student's images are of another size or aspect ratio than those that the teacher was "
        "trained or tested on",
        f"the stated AP is that of another checkpoint or of other data than "
        f"{cfg.val_dataloader.dataset.get('ann_file')!r}",
    ]
    return reasons


def main() -> int:
    """Evaluate and report.

    Returns:
        int: 1 if the teacher's AP is far from the stated one, else 0.
    """
    args = parse_args()
    for name, value in (("--images", args.images), ("--tolerance", args.tolerance)):
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be above 0, got {value}")
    cfg = read_config(args)
    model = build(cfg)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    classes = tuple(dataset.metainfo["classes"])
    check_classes(model, classes)
    pairs = model.class_map.pairs
    shared = classes if pairs is None else tuple(classes[own] for own, _ in pairs)
    with quiet(), teacher_in_front(model):
        loader = {**cfg.val_dataloader, "dataset": dataset}
        found = evaluate(model, loader, cfg.val_evaluator, args.images, shared)
    height, width = dataset[0]["inputs"].shape[-2:]
    images = min(args.images or len(dataset), len(dataset))
    print(
        f"{type(model.teacher).__name__} of {model.teacher.checkpoint_info['source']}\n"
        f"on {images} of {len(dataset)} images of {dataset.ann_file}, as the student gets them: "
        f"the first is {width}x{height}\n"
        + ", ".join(f"{name} {'-' if v is None else v}" for name, v in found.items())
    )
    stated = cfg.model.teacher.get("ap")
    if stated is None:
        print("the config states no AP to compare it with: model.teacher.ap, in percent")
        return 0
    few = images < len(dataset)
    tolerance = args.tolerance or (TOLERANCE_OF_FEW if few else TOLERANCE)
    difference = (found["AP"] or 0.0) - stated
    if abs(difference) <= tolerance:
        print(f"the config states AP {stated:g}: as it should be (within {tolerance:g})")
        return 0
    print(
        f"WARNING: the config states AP {stated:g}, and here the teacher has {abs(difference):.1f} "
        f"{'less' if difference < 0 else 'more'}. What it says here is what it teaches. Likely "
        "reasons:"
    )
    if few:
        print(f"  * {images} images are few: AP scatters")
    for reason in likely_reasons(cfg, model, classes, shared):
        print(f"  * {reason}")
    return 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
