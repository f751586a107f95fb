"""What a distilled training step costs: python tools/benchmark.py CONFIG.

Runs the plain student's training step, the teacher's forward pass and the distilled student's
training step in turn, and tells how much longer the last takes than the first two together, and
where its time goes.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from kd_detr_mmdet.hooks.report_hook import points_of
from kd_detr_mmdet.utils.benchmark import (
    AMP_DTYPES,
    WARM_UP,
    Benchmark,
    image_size,
    markdown,
    summarize,
)
from kd_detr_mmdet.utils.cli import add_common_options, one_line_errors, read_config
from kd_detr_mmdet.utils.complexity import params_m
from kd_detr_mmdet.utils.data import check_data
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.study import commit, write_atomically


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config of a distillation")
    parser.add_argument("--steps", type=int, default=10, help="rounds to measure (default 10)")
    parser.add_argument("--batch-size", type=int, help="images per step (default: the config's)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("W", "H"),
        help="of the generated images, in pixels (default: the validation pipeline's)",
    )
    parser.add_argument(
        "--real", action="store_true", help="take the images of the config's train_dataloader"
    )
    parser.add_argument(
        "--amp", choices=list(AMP_DTYPES), help="mixed precision (default: as the config trains)"
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="peak memory on a CPU as well, in processes of their own (on a GPU always)",
    )
    parser.add_argument("--out", type=Path, help="write benchmark.md and .json to this folder")
    add_common_options(parser)
    return parser.parse_args()


def run(cfg: Config, args: argparse.Namespace) -> dict:
    """Measure; returns the content of benchmark.json, times in seconds and memory in bytes.

    Raises:
        ConfigError: If an option or the config does not do.
    """
    loader = cfg.get("train_dataloader") or {}
    batch_size = loader.get("batch_size", 1) if args.batch_size is None else args.batch_size
    for name, value in (("--steps", args.steps), ("--batch-size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if args.real and args.size:
        raise ConfigError("--size is for generated images: give it or --real")
    if args.real and not loader:
        raise ConfigError("--real needs a train_dataloader in the config")
    if args.real:
        check_data(cfg, ("train_dataloader",))
    init_default_scope("mmdet")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = bool((cfg.get("env_cfg") or {}).get("cudnn_benchmark"))
    benchmark = Benchmark(cfg, device, args.amp)
    if args.real:
        batches = benchmark.real(loader, batch_size)
    else:
        batches = benchmark.generated(image_size(cfg, args.size), batch_size)
    rounds = benchmark.measure(batches, args.steps)
    model = benchmark.model
    summary = summarize(rounds)
    if args.memory and device.type == "cpu":
        summary["memory"] = benchmark.cpu_memory(next(batches))
    return dict(
        title=f"Cost of a distilled step: {Path(args.config).stem}",
        config=args.config,
        options=args.cfg_options or {},
        images="real" if args.real else "generated",
        image_sizes=sorted({r.image_size for r in rounds}),
        batch_size=batch_size,
        steps=args.steps,
        warm_up=WARM_UP,
        amp=benchmark.amp,
        student=f"{type(model.student).__name__} of {params_m(model.student):.2f} M parameters",
        teacher=f"{type(model.teacher).__name__} of {params_m(model.teacher):.2f} M",
        teacher_weights=benchmark.teacher_weights,
        points=points_of(model),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        processor_time=benchmark.clock.alone,
        torch=torch.__version__,
        commit=commit(),
        summary=summary,
        rounds=[vars(r) for r in rounds],
    )


def main() -> None:
    args = parse_args()
    report = run(read_config(args), args)
    text = markdown(report)
    print(text, end="")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out / "benchmark.md", text)
        write_atomically(args.out / "benchmark.json", json.dumps(report, indent=1, default=str))


if __name__ == "__main__":
    with one_line_errors():
        main()
