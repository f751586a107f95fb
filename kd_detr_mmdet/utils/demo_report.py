"""The demo's report: a table, its figures as JSON, and a picture."""

import json
import platform
import statistics
import time
from pathlib import Path

import matplotlib
import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import Dataset

from ..detectors.teacher import load_strictly
from .complexity import gflops, params_m

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES_SHOWN = 4
IMAGES_TIMED = 40
MIN_SCORE = 0.3
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def write_report(work_dir: Path, runs: dict[str, dict], begin: float, seed: int) -> dict:
    """Write report.json, report.md and report.png.

    Args:
        work_dir: Where to write.
        runs: By name, ``title``, ``config``, ``checkpoint``, ``metrics`` and ``curve`` of a run.
        begin: ``time.time()`` of the demo's start.
        seed: The seed of all runs.

    Returns:
        dict: The content of report.json.
    """
    torch.set_num_threads(1)
    init_default_scope("mmdet")
    models = {name: load(run) for name, run in runs.items()}
    dataset = DATASETS.build(Config.fromfile(runs["alone"]["config"]).val_dataloader.dataset)
    milliseconds = time_per_image(models, dataset)
    report = {}
    for name, run in runs.items():
        batch = models[name].data_preprocessor(pseudo_collate([dataset[0]]), False)
        report[name] = dict(
            bbox_mAP=run["metrics"]["coco/bbox_mAP"],
            bbox_mAP_50=run["metrics"]["coco/bbox_mAP_50"],
            params_M=round(params_m(models[name]), 3),
            gflops=round(gflops(models[name], batch["inputs"], batch["data_samples"]), 4),
            ms_per_image=round(milliseconds[name], 2),
            train_seconds=run["curve"][-1]["seconds"],
            iterations=run["curve"][-1]["iteration"],
            curve=run["curve"],
        )
    report["seed"] = seed
    report["machine"] = f"{platform.machine()}, torch {torch.__version__}"
    draw(work_dir / "report.png", runs, models, dataset)
    report["seconds"] = round(time.time() - begin, 1)
    (work_dir / "report.md").write_text(table(runs, report))
    (work_dir / "report.json").write_text(json.dumps(report, indent=1))
    return report


def load(run: dict) -> BaseDetector:
    """The trained detector of a run, in eval mode."""
    model = MODELS.build(Config.fromfile(run["config"]).model)
    load_strictly(model, run["checkpoint"], what="checkpoint")
    return model.eval()


@torch.no_grad()
def time_per_image(models: dict[str, BaseDetector], dataset: Dataset) -> dict[str, float]:
    """Median milliseconds of one image through each model, the models taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    for index in range(min(IMAGES_TIMED, len(dataset))):
        for name, model in models.items():
            batch = pseudo_collate([dataset[index]])
            start = time.perf_counter()
            model.test_step(batch)
            spent[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in spent.items()}


def table(runs: dict[str, dict], report: dict) -> str:
    """The report in words and figures, as Markdown."""
    lines = [
        "| | AP | AP50 | parameters (M) | GFLOPs | ms per image | iterations | training (s) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        row = report[name]
        lines.append(
            f"| {run['title']} | {100 * row['bbox_mAP']:.1f} | {100 * row['bbox_mAP_50']:.1f} | "
            f"{row['params_M']:.2f} | {row['gflops']:.3f} | {row['ms_per_image']:.1f} | "
            f"{row['iterations']} | {row['train_seconds']:.0f} |"
        )
    gain = 100 * (report["distilled"]["bbox_mAP"] - report["alone"]["bbox_mAP"])
    longer = 100 * (report["distilled"]["bbox_mAP"] - report["alone_longer"]["bbox_mAP"])
    lines += [
        "",
        f"Distilled against alone: {gain:+.1f} AP after the same iterations, {longer:+.1f} AP "
        f"against the student that trained twice as long. One seed ({report['seed']}); the README "
        "tells how far seeds differ.",
        f"{report['seconds']:.0f} seconds in all ({report['machine']}).",
        "",
    ]
    return "\n".join(lines)


def draw(path: Path, runs: dict, models: dict[str, BaseDetector], dataset: Dataset) -> None:
    """Learning curves over iterations and time, and detections beside the ground truth."""
    shown = [name for name in ("teacher", "alone", "distilled") if name in models]
    indices = [i for i in range(len(dataset)) if len(dataset.get_data_info(i)["instances"]) >= 4]
    indices = indices[:IMAGES_SHOWN]
    size = (2.6 * (1 + len(shown)), 3.6 + 2.1 * len(indices))
    figure = plt.figure(figsize=size, dpi=100, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.6, 2.1 * len(indices)])
    for axes, key in zip(upper.subplots(1, 2, sharey=True), ("iteration", "seconds")):
        for (name, run), color in zip(runs.items(), COLORS):
            x, y = zip(*[(point[key], 100 * point["bbox_mAP"]) for point in run["curve"]])
            dashes = "--" if name == "alone_longer" else "-"
            axes.plot(x, y, dashes, color=color, label=run["title"])
        axes.set_xlabel(key if key == "iteration" else "seconds of training")
        axes.set_ylabel("AP")
        axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    grid = lower.subplots(len(indices), 1 + len(shown), squeeze=False)
    for number, (row, index) in enumerate(zip(grid, indices)):
        batch = pseudo_collate([dataset[index]])
        image = batch["inputs"][0].permute(1, 2, 0).numpy()[..., ::-1]
        truth = dataset.get_data_info(index)["instances"]
        results = {
            "ground truth": (
                [instance["bbox"] for instance in truth],
                [instance["bbox_label"] for instance in truth],
            )
        }
        for name in shown:
            with torch.no_grad():
                found = models[name].test_step(pseudo_collate([dataset[index]]))[0].pred_instances
            found = found[found.scores > MIN_SCORE]
            results[runs[name]["title"]] = found.bboxes.tolist(), found.labels.tolist()
        for axes, (title, (boxes, labels)) in zip(row, results.items()):
            axes.imshow(image)
            axes.axis("off")
            if number == 0:
                axes.set_title(title, fontsize="medium")
            for (x1, y1, x2, y2), label in zip(boxes, labels):
                color = COLORS[label % len(COLORS)]
                axes.add_patch(
                    plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.5)
                )
                axes.text(
                    x1,
                    y1,
                    dataset.metainfo["classes"][label],
                    fontsize=6,
                    color="white",
                    bbox=dict(fc=color, ec="none", pad=0.5),
                )
    figure.savefig(path)
    plt.close(figure)
