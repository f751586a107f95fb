"""Teacher against students, in AP and in cost: python tools/compare.py CONFIG [CHECKPOINT] ...

A checkpoint belongs to the config before it; without one, AP is left out. The config of a
distillation stands for its student. It writes compare.md, compare.json and compare.png.
"""

import argparse
import contextlib
import io
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from kd_detr_mmdet.detectors.teacher import load_strictly
from kd_detr_mmdet.hooks.report_hook import check_classes
from kd_detr_mmdet.utils.benchmark import image_size, quiet, spread, untrained
from kd_detr_mmdet.utils.cli import add_common_options, one_line_errors, read_config
from kd_detr_mmdet.utils.complexity import gflops, params_m
from kd_detr_mmdet.utils.configs import is_kd_model, model_config
from kd_detr_mmdet.utils.data import check_data, check_labels
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.evaluation import AP_NAMES, evaluate, teacher_in_front
from kd_detr_mmdet.utils.inference_cost import (
    WARM_UP,
    cpu_memory,
    file_megabytes,
    gpu_memory,
    milliseconds,
    random_image,
)
from kd_detr_mmdet.utils.study import commit, write_atomically

COLUMNS = {  # of the table
    **{name: name.replace("_", " ") for name in AP_NAMES if name != "AP75"},
    "params_M": "parameters (M)",
    "gflops": "GFLOPs",
    "file_MB": "file (MB)",
    "ms": "ms per image",
    "quartiles": "quartiles",
    "memory_MiB": "peak memory (MiB)",
}
COSTS = ("gflops", "ms", "params_M")  # of the picture


@dataclass
class Contender:
    """A detector to compare: a plain one, or the teacher of a distillation.

    Attributes:
        name: In table and picture.
        cfg: The config that was named, whole.
        detector: The model config of the detector alone.
        checkpoint: Its weights; None: no AP.
        is_teacher: Whether ``cfg`` is that of a distillation whose teacher this is.
    """

    name: str
    cfg: Config
    detector: dict
    checkpoint: str | None
    is_teacher: bool = False


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models",
        nargs="+",
        metavar="CONFIG [CHECKPOINT]",
        help="a config (.py), and behind it the checkpoint to measure its AP by",
    )
    parser.add_argument(
        "--teacher",
        action="store_true",
        help="a row for the teacher of each distillation as well; its AP, on the student's images, "
        "if there is a checkpoint of the student",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("W", "H"),
        help="of the image that cost is measured on, in pixels (default: each config's own)",
    )
    parser.add_argument("--rounds", type=int, default=20, help="to time (default 20)")
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/compare"), help="folder of the report"
    )
    parser.add_argument(
        "--trust", action="store_true", help="run whatever checkpoints contain beside weights"
    )
    add_common_options(parser)
    return parser.parse_args()


def pairs(words: list[str]) -> list[tuple[str, str | None]]:
    """Configs and their checkpoints.

    Raises:
        ConfigError: If a checkpoint follows no config.
    """
    found: list[tuple[str, str | None]] = []
    for word in words:
        if word.endswith(".py"):
            found.append((word, None))
        elif found and found[-1][1] is None:
            found[-1] = (found[-1][0], word)
        else:
            raise ConfigError(
                f"{word!r} is no config (.py) and follows none: name CONFIG [CHECKPOINT] ..."
            )
    return found


def contenders(args: argparse.Namespace) -> list[Contender]:
    """Who is compared, in the order of the table; a teacher stands before its first student.

    Raises:
        ConfigError: If a config or checkpoint cannot be used.
    """
    found: list[Contender] = []
    teachers = []
    for path, checkpoint in pairs(args.models):
        cfg = read_config(argparse.Namespace(**vars(args), config=path))
        name = Path(path).stem
        if args.teacher and is_kd_model(cfg.model):
            teacher = cfg.model.teacher
            source, weights = teacher.get("config"), teacher.get("checkpoint")
            if (source, weights) not in teachers:
                teachers.append((source, weights))
                detector = model_config(source, "teacher.config")
                title = Path(source).stem if isinstance(source, str) else detector.type
                weights = weights if checkpoint else None
                found.append(Contender(f"{title} (teacher)", cfg, detector, weights, True))
        found.append(Contender(name, cfg, model_config(cfg), checkpoint))
    names = [contender.name for contender in found]
    for contender in found:
        if names.count(contender.name) > 1:
            contender.name += f" {contender.checkpoint or ''}".rstrip()
    if len({contender.name for contender in found}) < len(found):
        raise ConfigError("a config is given twice with the same checkpoint")
    return found


def average_precision(
    contender: Contender, model: torch.nn.Module, device: torch.device
) -> dict[str, float | None]:
    """AP on the config's test data, as tools/test.py measures it."""
    cfg = contender.cfg
    check_data(cfg, ("test_dataloader",))
    if not contender.is_teacher:
        check_labels(cfg, "test_dataloader", model.checkpoint_info["classes"])
        return evaluate(model.to(device), cfg.test_dataloader, cfg.test_evaluator)
    distillation = MODELS.build(cfg.model).eval().to(device)
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's lines
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    classes = tuple(dataset.metainfo["classes"])
    check_classes(distillation, classes)
    shared = distillation.class_map.pairs
    names = classes if shared is None else tuple(classes[own] for own, _ in shared)
    loader = {**cfg.test_dataloader, "dataset": dataset}
    with teacher_in_front(distillation):
        return evaluate(distillation, loader, cfg.test_evaluator, classes=names)


def measure(
    found: list[Contender], args: argparse.Namespace, device: torch.device
) -> dict[str, dict]:
    """The rows of the table by name."""
    rows: dict[str, dict] = {}
    models, images = {}, {}
    for contender in found:
        name, cfg = contender.name, contender.cfg
        print(f"measuring {name}", file=sys.stderr, flush=True)
        size = image_size(cfg, args.size)
        images[name] = image = random_image(size)
        # Memory first: on a GPU nothing of this model is there yet.
        models[name] = model = untrained(contender.detector)
        if device.type == "cuda":
            memory = gpu_memory(model, image, device)
        else:
            memory = cpu_memory(contender.detector.to_dict(), size, cfg.get("custom_imports"))
        aps: dict[str, float | None] = dict.fromkeys(AP_NAMES)
        if contender.checkpoint:
            if not contender.is_teacher:
                load_strictly(model, contender.checkpoint, what="checkpoint", trust=args.trust)
            with quiet():
                aps = average_precision(contender, model, device)
        batch = model.data_preprocessor(image, False)
        rows[name] = dict(
            config=contender.cfg.filename,
            checkpoint=contender.checkpoint,
            detector=type(model).__name__,
            image_size=list(size),
            **aps,
            params_M=round(params_m(model), 3),
            gflops=round(gflops(model, batch["inputs"], batch["data_samples"]), 4),
            file_MB=round(file_megabytes(model), 2),
            memory_MiB=None if memory is None else round(memory / 2**20, 1),
        )
    for name, times in milliseconds(models, images, args.rounds).items():
        rows[name]["ms"] = {key: round(value, 3) for key, value in spread(times).items()}
    return rows


def markdown(report: dict) -> str:
    """The report as a table and a line on where its figures come from."""
    head = ["model", *COLUMNS.values()]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in report["rows"].items():
        cells = dict(row, ms=row["ms"]["median"])
        cells["quartiles"] = (
            f"{row['ms']['first_quartile']:.1f} to {row['ms']['last_quartile']:.1f}"
        )
        lines.append(f"| {name} | {' | '.join(_cell(key, cells[key]) for key in COLUMNS)} |")
    sizes = sorted({"x".join(map(str, row["image_size"])) for row in report["rows"].values()})
    where = (
        "the weights and the activations of one image"
        if report["device"] != "CPU"
        else "what the model adds to a process of its own, weights and one image"
    )
    lines += [
        "",
        "AP in percent, '-' for none. Cost of one random image of "
        f"{', '.join(sizes)} pixels, float32: GFLOPs are multiply-adds in 10^9; ms, from pixels in "
        f"memory to detections, is the median of {report['rounds']} rounds after "
        f"{report['warm_up']} that do not count, the models taking turns; file, the weights "
        f"alone; peak memory, {where}.",
        f"{report['device']} ({report['machine']}), {report['threads']} CPU threads, PyTorch "
        f"{report['torch']}, commit {report['commit'] or 'unknown'}.",
    ]
    return "\n".join(lines) + "\n"


def _cell(key: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.2f}" if key in ("params_M", "gflops", "file_MB") else f"{value:.1f}"


def draw(path: Path, rows: dict[str, dict]) -> None:
    """Save a scatter plot of AP over each cost, of the rows that have an AP."""
    figure, all_axes = plt.subplots(
        1, len(COSTS), figsize=(4 * len(COSTS), 4), dpi=120, sharey=True, layout="constrained"
    )
    colors = plt.get_cmap("tab10" if len(rows) <= 10 else "tab20").colors
    for axes, cost in zip(all_axes, COSTS):
        for number, (name, row) in enumerate(rows.items()):
            x = row["ms"]["median"] if cost == "ms" else row[cost]
            axes.scatter(x, row["AP"], s=60, color=colors[number % len(colors)], label=name)
        axes.set_xlabel(COLUMNS[cost])
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("AP")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    args = parse_args()
    if args.rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, got {args.rounds}")
    init_default_scope("mmdet")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = dict(
        rows=measure(contenders(args), args, device),
        rounds=args.rounds,
        warm_up=WARM_UP,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=commit(),
    )
    text = markdown(report)
    print(text, end="")
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "compare.md", text)
    write_atomically(args.out / "compare.json", json.dumps(report, indent=1))
    measured = {name: row for name, row in report["rows"].items() if row["AP"] is not None}
    if measured:
        draw(args.out / "compare.png", measured)
    else:
        print("no AP was measured, so there is no picture: name a checkpoint", file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
