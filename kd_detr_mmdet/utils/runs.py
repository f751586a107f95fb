"""Training runs as processes: start them, wait for them, read what they have logged."""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO

from mmengine.config import Config

from .checkpoints import read_checkpoint
from .errors import ConfigError, brief

ROOT = Path(__file__).resolve().parents[2]
LINES_TOLD = 20  # of a failed job's log
# Settings that say how a run is started, not what it is.
OF_A_START = ("work_dir", "launcher", "env_cfg", "resume", "load_from")
POSITIONS = ("iter", "step", "epoch")  # of a logged row: where, not what


def at_least_one(text: str) -> int:
    """An option that counts something, for argparse."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")


class Job:
    """A tool at work in a process with one thread: two of them share two cores best.

    Args:
        title: What messages call it.
        arguments: Of the Python interpreter; paths are relative to the repository's root.
        log: File for its output.
        work_dir: Where the run logs its evaluations, to show its progress.
        locks: Open files that the process keeps open, and with them their locks.
    """

    def __init__(
        self,
        title: str,
        arguments: list[str],
        log: Path,
        work_dir: Path | None = None,
        locks: Iterable[IO] = (),
    ) -> None:
        self.title, self.log, self.work_dir = title, log, work_dir
        threads = dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads},
                cwd=ROOT,
                pass_fds=[lock.fileno() for lock in locks],
            )

    def failure(self) -> str | None:
        """The last lines of the log and where all of it is, if the process has failed."""
        if not self.process.poll():
            return None
        lines = self.log.read_text(errors="replace").splitlines()[-LINES_TOLD:]
        return "\n".join([*lines, f"error: {self.title} failed; the whole log is {self.log}"])


def stop(jobs: list[Job]) -> None:
    """End the processes that still run, and wait until they are gone."""
    for job in jobs:
        job.process.terminate()
    for job in jobs:
        job.process.wait()


def wait(jobs: list[Job]) -> None:
    """Wait for jobs and show how far they are; if one fails, end the others and exit."""
    shown = ""
    try:
        running = True
        while running:
            running = any(job.process.poll() is None for job in jobs)
            line = "   ".join(
                filter(None, (progress(job.title, job.work_dir) for job in jobs if job.work_dir))
            )
            if line != shown:
                print(f"  {line}", flush=True)
                shown = line
            for job in jobs:
                if failure := job.failure():
                    sys.exit(failure)
            time.sleep(2 * running)
    finally:  # also on Ctrl-C: leave no process behind
        stop(jobs)


def scalars(work_dir: str | Path) -> list[dict]:
    """What a run has logged so far; the last line may be cut while it is written.

    A run that was resumed has logged into a folder for each start. What an earlier start had logged
    beyond the iteration from which a later one went on was done anew, and is left out.
    """
    rows: list[dict] = []
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        new = []
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                new.append(json.loads(line))
        begin = next((row["iter"] for row in new if "loss" in row), math.inf)
        lost = (i for i, row in enumerate(rows) if "loss" in row and row["iter"] >= begin)
        rows[next(lost, len(rows)) :] = new
    return rows


def series(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Curves of what :func:`scalars` returns: by name the iterations and values.

    An evaluation belongs to the training iteration that was logged last before it.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    iteration = 0
    for row in rows:
        trained = "loss" in row
        iteration = row["iter"] if trained else iteration
        for name, value in row.items():
            # Only training's seconds per iteration are a curve.
            if name not in POSITIONS and (trained or name not in ("time", "data_time")):
                curves.setdefault(name, []).append((iteration, value))
    return curves


def training_clock(rows: list[dict]) -> Callable[[float], float]:
    """The seconds of training, without evaluations, until an iteration.

    A step may cost more in one part of a run than in another: a distillation ends. So each logged
    time counts for the iterations since the one before. It is the median of five neighbours:
    neither a busy moment nor an interruption counts. On a CPU the times are the processor's, so
    that other work beside it does not count.

    Args:
        rows: Of :func:`scalars`.

    Returns:
        Callable: From an iteration to seconds; after the last logged one at that one's pace; NaN
            if none is logged.
    """
    rows = [row for row in rows if "loss" in row]
    if not rows:
        return lambda iteration: math.nan
    ends = [row["iter"] for row in rows]
    logged = [row.get("cpu_time", row["time"]) for row in rows]
    paces = [statistics.median(logged[max(i - 2, 0) : i + 3]) for i in range(len(logged))]
    spans = zip(pairwise([0, *ends]), paces)
    seconds = list(accumulate((end - begin) * pace for (begin, end), pace in spans))

    def clock(iteration: float) -> float:
        i = min(bisect_left(ends, iteration), len(ends) - 1)
        return seconds[i] - (ends[i] - iteration) * paces[i]

    return clock


def progress(title: str, work_dir: Path) -> str:
    """One run's last evaluation, e.g. 'teacher: epoch 3, AP 12.3'."""
    evaluated = [row for row in scalars(work_dir) if "coco/bbox_mAP" in row]
    if not evaluated:
        return ""
    return f"{title}: epoch {evaluated[-1]['step']}, AP {100 * ap(evaluated[-1]):.1f}"


def ap(row: dict, name: str = "bbox_mAP") -> float:
    """AP (0 to 1) of a logged evaluation; COCO says -1 where it has none, and mmdet nothing."""
    return max(row.get(f"coco/{name}", 0.0), 0.0)


def curve(work_dir: Path) -> list[dict]:
    """AP at each evaluation, with the iterations and the seconds of training so far."""
    rows = scalars(work_dir)
    clock = training_clock(rows)
    return [
        dict(iteration=iteration, seconds=round(clock(iteration), 1), bbox_mAP=max(value, 0.0))
        for iteration, value in series(rows).get("coco/bbox_mAP", [])
    ]


def check_work_dir(cfg: Config) -> None:
    """Refuse to write over the checkpoints of another run, unless one is resumed.

    Work directories are named after the config's file alone: two files of one name, and two seeds,
    share one.

    Args:
        cfg: As it is to be trained, with ``work_dir``.

    Raises:
        ConfigError: With the settings that differ from those in the last checkpoint.
    """
    folder = Path(cfg.work_dir)
    if cfg.get("resume") or not (folder / "last_checkpoint").is_file():
        return
    path = checkpoint(folder)
    try:
        text = read_checkpoint(path, "checkpoint").get("meta", {}).get("cfg")
        found = Config.fromstring(text, ".py").to_dict()
    except Exception:  # damaged, or of another program: there is nothing to compare with
        return
    own = Config.fromstring(cfg.pretty_text, ".py").to_dict()
    for settings in (found, own):
        for name in OF_A_START:
            settings.pop(name, None)
    if differing := list(_differing(found, own)):
        raise ConfigError(
            f"{folder} holds {Path(path).name} of another run, which this one would overwrite: "
            f"they differ in {brief(differing)}. Give another --work-dir, go on with --resume, or "
            "delete the folder"
        )


def _differing(one: dict, other: dict, prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings that differ."""
    for name in sorted({*one, *other}):
        both = [settings.get(name) for settings in (one, other)]
        if all(isinstance(value, dict) for value in both):
            yield from _differing(*both, f"{prefix}{name}.")
        elif both[0] != both[1]:
            yield f"{prefix}{name}"


def checkpoint(work_dir: Path) -> str:
    """The last checkpoint of a run, wherever its folder was moved to since."""
    return str(work_dir / Path((work_dir / "last_checkpoint").read_text().strip()).name)
