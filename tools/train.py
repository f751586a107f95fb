"""Train a detector, alone or distilled: python tools/train.py CONFIG."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from kd_detr_mmdet.hooks import (
    AtomicCheckpointHook,
    CpuTimeHook,
    DistillLogHook,
    DistillReportHook,
    OfficialWeightsHook,
    RandomStateHook,
    ResumedValidationHook,
)
from kd_detr_mmdet.utils.amp import AMP_DTYPES, use_amp
from kd_detr_mmdet.utils.checkpoints import let_mmengine_read_anything, let_mmengine_read_data_only
from kd_detr_mmdet.utils.cli import add_common_options, build_runner, one_line_errors, read_config
from kd_detr_mmdet.utils.configs import check_part_names, is_kd_model
from kd_detr_mmdet.utils.data import check_data
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.runs import check_work_dir


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a detector, alone or distilled")
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--amp",
        nargs="?",
        const="float16",
        choices=AMP_DTYPES,
        help="train in mixed precision: float16 (default; GPU only) or bfloat16 (CPU as well)",
    )
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate to the batch size"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="resume from a checkpoint; without a path, from the latest in the work directory",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run whatever checkpoints contain beside weights: what is resumed, load_from, "
        "pretrained backbones (the teacher's has its own option, teacher.trust)",
    )
    add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = read_config(args)
    if args.amp:
        use_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise ConfigError("--auto-scale-lr needs auto_scale_lr.base_batch_size in the config")
        steps = (cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1)
        if steps > 1:
            raise ConfigError(
                "--auto-scale-lr counts the images of one iteration, and "
                f"optim_wrapper.accumulative_counts={steps} adds up the gradients of {steps}: "
                "leave it out where that makes up for fewer, or set the learning rate yourself"
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if is_kd_model(cfg.model):
        check_part_names(cfg)
    given = cfg.get("default_hooks", {}).get("non_finite", {})
    cfg.merge_from_dict({"default_hooks.non_finite": {"type": "NonFiniteHook", **given}})
    check_work_dir(cfg)
    check_data(cfg, ("train_dataloader", "val_dataloader"))
    if args.trust:
        let_mmengine_read_anything()
    else:
        let_mmengine_read_data_only()
    if args.resume == "auto" and not Path(cfg.work_dir, "last_checkpoint").exists():
        print(f"--resume: no checkpoint in {cfg.work_dir!r}: training starts from the beginning")
    runner = build_runner(cfg)
    runner.register_hook(RandomStateHook())
    runner.register_hook(ResumedValidationHook())
    runner.register_hook(OfficialWeightsHook())
    AtomicCheckpointHook.take_over(runner)
    if not torch.cuda.is_available():
        runner.register_hook(CpuTimeHook())
    if is_kd_model(cfg.model):
        runner.register_hook(DistillReportHook())
        runner.register_hook(DistillLogHook())
    runner.train()


if __name__ == "__main__":
    with one_line_errors():
        main()
