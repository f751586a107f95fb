"""Write the student to deploy: python tools/export.py CONFIG CHECKPOINT.

One file with the weights, the config and the classes of the student, and nothing of its training.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kd_detr_mmdet  # noqa: F401  isort: skip  (provides mmcv's operators, so before mmdet)

from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from kd_detr_mmdet.detectors.teacher import load_strictly
from kd_detr_mmdet.utils.cli import add_common_options, one_line_errors, read_config
from kd_detr_mmdet.utils.complexity import params_m
from kd_detr_mmdet.utils.configs import model_config
from kd_detr_mmdet.utils.deploy import class_names, inference_config, save_deployable


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
    parser.add_argument(
        "--trust", action="store_true", help="run whatever the checkpoint contains beside weights"
    )
    add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    whole = read_config(args)
    stem = args.out or Path(whole.work_dir, Path(args.config).stem)
    cfg = inference_config(whole)
    init_default_scope("mmdet")
    detector = MODELS.build(model_config(cfg)).eval()
    load_strictly(detector, args.checkpoint, what="checkpoint", trust=args.trust)
    classes = class_names(detector, cfg)
    path = save_deployable(detector, cfg, classes, stem)
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {type(detector).__name__}, "
        f"{params_m(detector):.2f} M parameters, {len(classes)} classes"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
