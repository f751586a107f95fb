"""A study's report: tables of AP and of paired gains, the figures as JSON, and learning curves."""

import json
import math
import os
import statistics
from itertools import pairwise
from pathlib import Path

import matplotlib
from scipy import stats

from .errors import ConfigError
from .study import Results, Run, Study, machine, results_of, write_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt

EQUAL_TIME = 1.03  # what still counts as the same training time, as a factor


def write_report(out: Path, study: Study, results: Results, added: list[dict] = ()) -> None:
    """Write report.md, report.json and report.png.

    Args:
        out: The folder, created if missing.
        study: What was trained.
        results: Of its finished runs.
        added: What :func:`~.study.add_report` says of results from elsewhere.

    Raises:
        ConfigError: If no run is finished.
    """
    if not results:
        raise ConfigError(f"study {study.path!r}: no run is finished yet, nothing to report")
    out.mkdir(parents=True, exist_ok=True)
    report = summarize(study, results, added)
    write_atomically(out / "report.json", json.dumps(report, indent=1))
    write_atomically(out / "report.md", markdown(report))
    draw(out / "report.png", study, results)


def summarize(study: Study, results: Results, added: list[dict] = ()) -> dict:
    """The content of report.json: AP in percent, ``None`` where there is nothing to tell."""
    shown = {**study.teachers, **study.runs}
    rows, gains = {}, {}
    for name, run in shown.items():
        if name not in results:
            continue
        by_seed = results[name]
        last = {seed: 100 * r["bbox_mAP"] for seed, r in by_seed.items()}
        best = {seed: 100 * r["best_bbox_mAP"] for seed, r in by_seed.items()}
        rows[name] = dict(
            title=run.title,
            ap=statistics.mean(last.values()),
            ap_sd=statistics.stdev(last.values()) if len(last) > 1 else None,
            ap_per_seed=last,
            plateau_ap=statistics.mean(best.values()),
            plateau_ap_per_seed=best,
            iterations=statistics.mean(r["iterations"] for r in by_seed.values()),
            seconds=statistics.mean(r["seconds"] for r in by_seed.values()),
            seeds=sorted(by_seed),
            results=by_seed,
        )
        if run.baseline is not None:
            gains[name] = compare(run, results)
            gains[name]["title"] = run.title
            gains[name]["baseline_title"] = shown[run.baseline].title
            gains[name]["same_time_titles"] = [shown[other].title for other in run.same_time]
    finished = [result for by_seed in results.values() for result in by_seed.values()]
    commits = {name for r in finished for name in (r["commit"] or "none").split(", ")}
    elsewhere = {seed for place in added for seed in place["seeds"]}
    # Where they were trained, which need not be here; reports from before that was noted are.
    machines = {
        place
        for name in study.runs
        for seed, result in results.get(name, {}).items()
        if seed not in elsewhere
        for place in (result.get("machine") or machine()).split("; ")
    }
    return dict(
        title=study.title,
        rows=rows,
        gains=gains,
        seeds=sorted({seed for name in study.runs for seed in results.get(name, {})}),
        commits=sorted(commits),
        machine="; ".join(sorted(machines)) or machine(),
        command=f"python tools/study.py {study.path}",
        added=list(added),
    )


def compare(run: Run, results: Results) -> dict:
    """A run against its baseline and others, seed by seed.

    Args:
        run: With a baseline.
        results: Of all runs; a seed counts where all runs that are compared have finished it.

    Returns:
        dict: ``equal_iterations``, ``equal_time`` and ``plateau``, gains in AP as
            :func:`interval` tells them, the latter two of seeds where one of ``run.same_time``
            trained for as long (within 3 %), and ``time_to_baseline``: the time to the baseline's
            best AP as a share of the baseline's own (``median``, None for never; ``per_seed``;
            ``reached`` of ``seeds``).
    """
    own, base = results.get(run.name, {}), results.get(run.baseline, {})
    equal_time, plateau, shares = {}, {}, {}
    for seed in sorted(own.keys() & base.keys()):
        mine, theirs = own[seed], base[seed]
        if goal := theirs["best_bbox_mAP"]:  # of a baseline that found nothing all are ahead
            reached = seconds_to(goal, mine["curve"])
            whole = seconds_to(goal, theirs["curve"])
            shares[seed] = math.inf if reached is None else reached / whole
        if run.same_time and all(seed in results.get(name, {}) for name in run.same_time):
            others = [results[name][seed] for name in run.same_time]
            # Ahead of what trained for less time says nothing of equal time.
            if max(other["seconds"] for other in others) * EQUAL_TIME < mine["seconds"]:
                continue
            best = max(other["best_bbox_mAP"] for other in others)
            plateau[seed] = 100 * (mine["best_bbox_mAP"] - best)
            within = [best_within(mine["seconds"], other["curve"]) for other in others]
            told = [
                (best, other["seconds"]) for best, other in zip(within, others) if best is not None
            ]
            # So must be what it is told against.
            if any(seconds * EQUAL_TIME >= mine["seconds"] for _, seconds in told):
                equal_time[seed] = 100 * (mine["bbox_mAP"] - max(told)[0])
    median = statistics.median(shares.values()) if shares else math.inf
    return dict(
        baseline=run.baseline,
        same_time=list(run.same_time),
        equal_iterations=interval(paired_gains(own, base)),
        equal_time=interval(equal_time),
        plateau=interval(plateau),
        time_to_baseline=dict(
            median=median if math.isfinite(median) else None,
            per_seed={seed: s if math.isfinite(s) else None for seed, s in shares.items()},
            reached=sum(map(math.isfinite, shares.values())),
            seeds=len(shares),
        ),
    )


def paired_gains(own: dict[int, dict], base: dict[int, dict]) -> dict[int, float]:
    """Gains in AP of the seeds that two runs have finished after equal iterations."""
    return {
        seed: 100 * (own[seed]["bbox_mAP"] - base[seed]["bbox_mAP"])
        for seed in sorted(own.keys() & base.keys())
        if own[seed]["iterations"] == base[seed]["iterations"]
    }


def interval(values: dict[int, float]) -> dict:
    """Mean of paired gains with its 95 % interval by Student's t.

    Args:
        values: By seed.

    Returns:
        dict: ``mean``, ``low`` and ``high`` (None for fewer than one and two values), ``seeds``
            (how many) and ``per_seed``.
    """
    gains, count = list(values.values()), len(values)
    mean = statistics.mean(gains) if gains else None
    low = high = None
    if count > 1:
        half = stats.t.ppf(0.975, count - 1) * statistics.stdev(gains) / math.sqrt(count)
        low, high = float(mean - half), float(mean + half)
    return dict(mean=mean, low=low, high=high, seeds=count, per_seed=values)


def ahead_of(report: dict, name: str) -> dict[str, dict]:
    """How far ahead of one run the others are, at equal iterations.

    Args:
        report: Content of a report.json.
        name: Of the run.

    Returns:
        dict: By run, the differences in AP of the seeds that both have finished, as
            :func:`interval` tells them; without teachers, and runs that share no such seed.

    Raises:
        ConfigError: If the report has no run of that name, or none to compare it with.
    """
    results = results_of(report)
    # A teacher's seed has no student of that seed for its pair.
    taught_by = (result.get("teacher") or {} for own in results.values() for result in own.values())
    teachers = {teacher.get("name") for teacher in taught_by}
    results = {run: own for run, own in results.items() if run not in teachers}
    if name not in results:
        known = ", ".join(map(repr, results))
        raise ConfigError(f"no run {name!r} in this report; it has {known}")
    base = results.pop(name)
    ahead = {other: paired_gains(own, base) for other, own in results.items()}
    told = {other: interval(by_seed) for other, by_seed in ahead.items() if by_seed}
    if not told:
        raise ConfigError(f"no other run has a seed and the iterations of {name!r}")
    return told


def seconds_to(goal: float, curve: list[dict]) -> float | None:
    """Seconds of training until an AP (0 to 1) was first reached; None for never."""
    return next((point["seconds"] for point in curve if point["bbox_mAP"] >= goal), None)


def best_within(seconds: float, curve: list[dict]) -> float | None:
    """Best AP (0 to 1) of a learning curve in a time; None before its first evaluation.

    Evaluations until then count, and 3 % later. Where the time falls between two, so does the
    straight line between them: else a run that is evaluated rarely would be told by its past.
    """
    best = [point["bbox_mAP"] for point in curve if point["seconds"] <= EQUAL_TIME * seconds]
    for before, after in pairwise(curve):
        if before["seconds"] <= seconds < after["seconds"]:
            share = (seconds - before["seconds"]) / (after["seconds"] - before["seconds"])
            best.append(before["bbox_mAP"] + share * (after["bbox_mAP"] - before["bbox_mAP"]))
    return max(best, default=None)


def markdown(report: dict) -> str:
    """The report as two tables and a line on where they come from."""
    lines = [
        f"# {report['title']}",
        "",
        "| run | AP | sd | AP per seed | plateau AP | iterations | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"].values():
        spread = "-" if row["ap_sd"] is None else f"{row['ap_sd']:.1f}"
        per_seed = " ".join(f"{row['ap_per_seed'][seed]:.1f}" for seed in row["seeds"])
        lines.append(
            f"| {row['title']} | {row['ap']:.1f} | {spread} | {per_seed} | "
            f"{row['plateau_ap']:.1f} | {row['iterations']:.0f} | {row['seconds']:.0f} | "
            f"{' '.join(map(str, row['seeds']))} |"
        )
    lines += ["", "AP: of the last checkpoint. Plateau AP: the best of the learning curve."]
    if report["gains"]:
        lines += [
            "",
            "| run | baseline | gain at equal iterations | gain at equal time | plateau gain | "
            "time to the baseline's best AP | at equal time and on the plateau against |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in report["gains"].values():
            cells = [_gain(row[key]) for key in ("equal_iterations", "equal_time", "plateau")]
            lines.append(
                f"| {row['title']} | {row['baseline_title']} | {' | '.join(cells)} | "
                f"{_share(row['time_to_baseline'])} | {', '.join(row['same_time_titles'])} |"
            )
        lines += [
            "",
            "Gains in AP over the same seeds: mean [95 % interval, Student's t] (pairs); '-' at "
            "equal iterations: the baseline trained for others; at equal time and on the plateau: "
            "not all of the others are finished, none of them trained for as long, or, at equal "
            "time, none was evaluated so early. Equal time: against the best AP that "
            f"the runs named last reached in as many seconds (and {EQUAL_TIME - 1:.0%} "
            "more), between two evaluations on a straight line. Time to the baseline's best AP: as "
            "a share of the baseline's own; the median over seeds (how many reached it at all).",
        ]
    lines += [
        "",
        f"Seeds {' '.join(map(str, report['seeds']))}; commit {', '.join(report['commits'])}; "
        f"{report['machine']}; `{report['command']}`",
        "",
    ]
    for other in report["added"]:
        teachers = ", ".join(f"{title} {ap:.1f} AP" for title, ap in other["teachers"].items())
        lines += [
            f"Seeds {' '.join(map(str, other['seeds']))} were trained elsewhere: {other['machine']}"
            f"{f'; {teachers}' if teachers else ''}; `--add {other['path']}`",
            "",
        ]
    return "\n".join(lines)


def _gain(gain: dict) -> str:
    if gain["mean"] is None:
        return "-"
    limits = "-" if gain["low"] is None else f"{gain['low']:+.1f}, {gain['high']:+.1f}"
    return f"{gain['mean']:+.1f} [{limits}] ({gain['seeds']})"


def _share(time_to: dict) -> str:
    if not time_to["seeds"]:
        return "-"
    share = "never" if time_to["median"] is None else f"{time_to['median']:.0%}"
    return f"{share} ({time_to['reached']} of {time_to['seeds']})"


def mean_curve(results: dict[int, dict]) -> list[dict]:
    """AP against iterations, over the seeds that were all evaluated there.

    Returns:
        list[dict]: ``iteration``, mean ``seconds``, and ``mean``, ``low`` and ``high`` AP in
            percent.
    """
    curves = [{point["iteration"]: point for point in r["curve"]} for r in results.values()]
    points = []
    for iteration in sorted(set.intersection(*map(set, curves))):
        aps = [100 * curve[iteration]["bbox_mAP"] for curve in curves]
        seconds = statistics.mean(curve[iteration]["seconds"] for curve in curves)
        extent = dict(mean=statistics.mean(aps), low=min(aps), high=max(aps))
        points.append(dict(iteration=iteration, seconds=seconds, **extent))
    return points


def draw(path: Path, study: Study, results: Results) -> None:
    """Mean learning curves of the runs over iterations and seconds, bands from worst to best.

    Distilled runs are drawn solid, others dashed; a teacher is a dotted line at its last AP.
    """
    runs = [run for name, run in study.runs.items() if name in results]
    teachers = [run for name, run in study.teachers.items() if name in results]
    colors = plt.get_cmap("tab10" if len(runs) <= 10 else "tab20").colors
    rows = math.ceil((len(runs) + len(teachers)) / 3)
    figure, both = plt.subplots(
        1, 2, sharey=True, figsize=(10, 4.2 + 0.22 * rows), dpi=100, layout="constrained"
    )
    for axes, key in zip(both, ("iteration", "seconds")):
        for number, run in enumerate(runs):
            color = colors[number % len(colors)]
            curve = mean_curve(results[run.name])
            x = [point[key] for point in curve]
            dashes = "-" if run.teacher else "--"
            marker = "." if len(x) < 2 else None  # one point makes no line
            means = [point["mean"] for point in curve]
            axes.plot(x, means, dashes, color=color, marker=marker, label=run.title)
            low, high = ([point[end] for point in curve] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=color, alpha=0.1, linewidth=0)
        for number, run in enumerate(teachers):
            level = statistics.mean(100 * r["bbox_mAP"] for r in results[run.name].values())
            shade = str(0.6 * number / max(len(teachers) - 1, 1))
            axes.axhline(level, color=shade, linestyle=":", label=run.title)
        axes.set_xlabel("iterations" if key == "iteration" else "seconds of training")
        axes.grid(alpha=0.3)
    both[0].set_ylabel("AP")
    figure.suptitle(study.title)
    handles, labels = both[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, format="png")
    plt.close(figure)
    os.replace(temporary, path)
