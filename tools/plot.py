"""Draw the curves of several runs into one picture: python tools/plot.py WORK_DIR [WORK_DIR ...].

A panel for each curve that was logged, a line for each run. Of a run that was resumed, what was
done twice is drawn once.
"""

import argparse
import math
import sys
from fnmatch import fnmatchcase
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from kd_detr_mmdet.utils.cli import check_picture, one_line_errors
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.runs import scalars, series, training_clock

PANELS_PER_ROW = 3
AXIS_TITLES = dict(iterations="iterations", seconds="seconds of training")

Curves = dict[str, list[tuple[float, float]]]  # by name: places on the x axis, and values


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work_dirs", nargs="+", type=Path, metavar="WORK_DIR", help="of a run")
    parser.add_argument(
        "--curves",
        nargs="+",
        default=["bbox_mAP", "loss"],
        metavar="NAME",
        help="names in the log, or patterns such as 'kd_loss_*' (default: bbox_mAP loss)",
    )
    parser.add_argument("--over", choices=list(AXIS_TITLES), default="iterations", help="x axis")
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the past in a moving average of what training logs, from 0 (default) to below 1",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("curves.png"), help="the picture: .png, .svg or .pdf"
    )
    return parser.parse_args()


def read_run(work_dir: Path, over: str) -> Curves:
    """All curves of a run; AP in percent.

    Raises:
        ConfigError: If nothing was logged there.
    """
    rows = scalars(work_dir)
    if not rows:
        raise ConfigError(
            f"{str(work_dir)!r} holds no logs: give a run's work directory, in which training "
            "writes <start time>/vis_data/scalars.json"
        )
    place = training_clock(rows) if over == "seconds" else lambda iteration: iteration
    return {
        name: [(place(iteration), percent(name, value)) for iteration, value in points]
        for name, points in series(rows).items()
    }


def percent(name: str, value: float) -> float:
    """AP as it is reported; COCO says -1 where it has none. Anything else as it is."""
    if "mAP" not in name:
        return value
    return 100 * value if value >= 0 else math.nan


def choose(patterns: list[str], runs: dict[str, Curves]) -> list[str]:
    """Names of the curves that are asked for, in that order; a metric also without its 'coco/'.

    Raises:
        ConfigError: If a pattern fits nothing that any of the runs has logged.
    """
    logged = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    chosen: dict[str, None] = {}
    for pattern in patterns:
        fits = [
            name
            for name in logged
            if fnmatchcase(name, pattern) or fnmatchcase(name.split("/")[-1], pattern)
        ]
        if not fits:
            names = ", ".join(sorted(name.split("/")[-1] for name in logged))
            raise ConfigError(f"no run has logged a curve {pattern!r}; logged: {names}")
        chosen.update(dict.fromkeys(fits))
    return list(chosen)


def run_names(work_dirs: list[Path]) -> list[str]:
    """The folders' names, with as many of their parents as tell them apart."""
    paths = [path.resolve() for path in work_dirs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a work directory is given twice")


def smoothed(values: list[float], share: float) -> list[float]:
    """Exponential moving average that begins with the first value; NaN is passed over.

    Args:
        values: To smooth.
        share: Of the past, in [0, 1).
    """
    result, total, weight = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            total, weight = share * total + (1 - share) * value, share * weight + (1 - share)
        result.append(total / weight if weight else math.nan)
    return result


def draw(path: Path, runs: dict[str, Curves], chosen: list[str], over: str, smooth: float) -> None:
    """Save the picture.

    Args:
        path: Where, and by its ending in which format.
        runs: Curves by the run's name, for the legend.
        chosen: Names of the curves, a panel each.
        over: What the x axis counts.
        smooth: Share of the past in the average of a training curve, which itself is drawn faintly.
    """
    columns = min(PANELS_PER_ROW, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    size = (max(4.4 * columns, 6), 3.2 * rows + 0.3 * math.ceil(len(runs) / 3))
    figure, grid = plt.subplots(
        rows, columns, figsize=size, dpi=120, squeeze=False, layout="constrained"
    )
    colors = plt.get_cmap("tab10" if len(runs) <= 10 else "tab20").colors
    for axes, name in zip(grid.flat, chosen):
        is_metric = "/" in name
        for number, (run, curves) in enumerate(runs.items()):
            x, y = zip(*curves.get(name, [(math.nan, math.nan)]))  # so that the legend is complete
            style = dict(color=colors[number % len(colors)], marker="." if is_metric else None)
            if smooth and not is_metric:
                axes.plot(x, y, **style, alpha=0.25)
                y = smoothed(list(y), smooth)
            axes.plot(x, y, **style, label=run)
        axes.set_title(name.split("/")[-1] + (" (%)" if "mAP" in name else ""), fontsize="medium")
        axes.set_xlabel(AXIS_TITLES[over])
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(runs)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    args = parse_args()
    if not 0 <= args.smooth < 1:
        raise ConfigError(f"--smooth must be at least 0 and below 1, got {args.smooth}")
    check_picture(args.out)
    runs = {
        name: read_run(path, args.over)
        for name, path in zip(run_names(args.work_dirs), args.work_dirs)
    }
    draw(args.out, runs, choose(args.curves, runs), args.over, args.smooth)
    print(args.out)


if __name__ == "__main__":
    with one_line_errors():
        main()
