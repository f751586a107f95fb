"""Train a tiny teacher, and the same tiny student alone and distilled: python tools/demo.py.

It writes report.json, report.md and report.png to work_dirs/demo.
"""

import argparse
import json
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kd_detr_mmdet.datasets import generate_shapes
from kd_detr_mmdet.utils.runs import Job, at_least_one, checkpoint, curve, wait

CONFIGS = dict(
    teacher="dino_teacher",
    alone="dino_alone",
    distilled="kd-detr_dino",
    alone_longer="dino_alone_longer",
)
STOCK = dict(CONFIGS, distilled="dino_alone")  # what a distilled student is tested with
NAMES = dict(
    teacher="teacher",
    alone="student alone",
    distilled="student distilled",
    alone_longer="student alone, twice as long",
)
REPORTS = ("report.json", "report.md", "report.png")


def config_path(name: str) -> str:
    """Path of one of the demo's configs."""
    return str(ROOT / "configs" / "demo" / f"{name}.py")


def train(names: list[str], work_dir: Path, seed: int, epochs: int | None) -> None:
    """Train two configs side by side."""
    print(f"training: {' and '.join(NAMES[name] for name in names)}", flush=True)
    jobs = []
    for name in names:
        options = [f"randomness.seed={seed}"]
        if epochs:
            options.append(f"train_cfg.max_epochs={epochs}")
        if name == "distilled":
            options.append(f"model.teacher.checkpoint={checkpoint(work_dir / 'teacher')}")
        arguments = ["tools/train.py", config_path(CONFIGS[name])]
        arguments += ["--work-dir", str(work_dir / name), "--cfg-options", *options]
        jobs.append(Job(NAMES[name], arguments, work_dir / f"{name}.log", work_dir / name))
    wait(jobs)


def test(names: list[str], work_dir: Path) -> None:
    """Evaluate checkpoints with the stock configs, which know nothing of distillation."""
    jobs = []
    for name in names:
        arguments = ["tools/test.py", config_path(STOCK[name]), checkpoint(work_dir / name)]
        arguments += ["--work-dir", str(work_dir / name), "--out", str(work_dir / f"{name}.json")]
        jobs.append(Job(NAMES[name], arguments, work_dir / f"{name}_test.log", work_dir / name))
    wait(jobs)


def run(work_dir: Path, seed: int, epochs: int | None) -> dict:
    """The whole demo for one seed; returns the content of report.json."""
    begin = time.time()
    work_dir.mkdir(parents=True, exist_ok=True)
    for name in CONFIGS:  # what an earlier demo left
        shutil.rmtree(work_dir / name, ignore_errors=True)
    for name in REPORTS:
        (work_dir / name).unlink(missing_ok=True)

    for names in (["teacher", "alone"], ["distilled", "alone_longer"]):
        train(names, work_dir, seed, epochs)
    print("testing all with their stock configs", flush=True)
    for names in (["teacher", "alone"], ["distilled", "alone_longer"]):
        test(names, work_dir)

    from kd_detr_mmdet.utils.demo_report import write_report  # torch is slow to import

    runs = {
        name: dict(
            title=NAMES[name],
            config=config_path(STOCK[name]),
            checkpoint=checkpoint(work_dir / name),
            metrics=json.loads((work_dir / f"{name}.json").read_text()),
            curve=curve(work_dir / name),
        )
        for name in CONFIGS
    }
    report = write_report(work_dir, runs, begin, seed)
    print((work_dir / "report.md").read_text())
    print(f"the picture: {work_dir / 'report.png'}")
    return report


def summarize(reports: list[dict]) -> str:
    """Mean and standard deviation over seeds, and the paired gains, as a Markdown table."""

    def row(title: str, values: list[float], sign: str = "") -> str:
        figures = " ".join(f"{value:{sign}.1f}" for value in values)
        spread = statistics.stdev(values)
        return f"| {title} | {statistics.mean(values):{sign}.1f} | {spread:.1f} | {figures} |"

    aps = {name: [100 * report[name]["bbox_mAP"] for report in reports] for name in CONFIGS}
    seconds = {
        name: statistics.mean(report[name]["train_seconds"] for report in reports)
        for name in CONFIGS
    }
    lines = ["| AP | mean | standard deviation | seeds |", "|---|---|---|---|"]
    for name, title in NAMES.items():
        lines.append(row(f"{title} ({seconds[name]:.0f} s of training)", aps[name]))
    for name in ("alone", "alone_longer"):
        gains = [distilled - other for distilled, other in zip(aps["distilled"], aps[name])]
        lines.append(row(f"gain of distilled over {NAMES[name]}", gains, "+"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs" / "demo")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="several: one demo each, and a summary"
    )
    parser.add_argument(
        "--epochs", type=at_least_one, help="train every model this long, to try things out"
    )
    args = parser.parse_args()
    # Ended from outside, it ends its jobs as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    work_dir = args.work_dir.resolve()
    print("generating 600 + 150 images", flush=True)
    generate_shapes(ROOT / "data" / "shapes", {"train": 600, "val": 150}, (128, 96))
    if len(args.seeds) == 1:
        run(work_dir, args.seeds[0], args.epochs)
        return
    reports = [run(work_dir / f"seed-{seed}", seed, args.epochs) for seed in args.seeds]
    text = summarize(reports)
    (work_dir / "seeds.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: run it again to start over")
