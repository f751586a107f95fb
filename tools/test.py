"""Evaluate a trained detector: python tools/test.py CONFIG CHECKPOINT."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.fileio import dump

from kd_detr_mmdet.detectors.teacher import load_strictly
from kd_detr_mmdet.utils.cli import add_common_options, build_runner, one_line_errors, read_config
from kd_detr_mmdet.utils.configs import model_config
from kd_detr_mmdet.utils.data import check_data, check_labels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate a trained detector")
    parser.add_argument("config", help="config file: the distillation's or the student's own")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", help="save the metrics to this .json file")
    parser.add_argument(
        "--trust", action="store_true", help="run whatever the checkpoint contains beside weights"
    )
    add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = read_config(args)
    cfg.model = model_config(cfg)  # of a distillation, the student: testing needs no teacher
    cfg.load_from, cfg.resume = None, False
    check_data(cfg, ("test_dataloader",))
    runner = build_runner(cfg)
    model = getattr(runner.model, "module", runner.model)
    load_strictly(model, args.checkpoint, what="checkpoint", trust=args.trust)
    check_labels(cfg, "test_dataloader", model.checkpoint_info["classes"])
    metrics = runner.test()
    if args.out and runner.rank == 0:
        dump(metrics, args.out)


if __name__ == "__main__":
    with one_line_errors():
        main()
