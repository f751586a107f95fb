"""Training runs as processes: start them, wait for them, read what they have logged."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES_TOLD = 20  # of a failed job's log


class Job:
    """A tool at work in a process with one thread: two of them share two cores best.

    Args:
        title: What messages call it.
        arguments: Of the Python interpreter; paths are relative to the repository's root.
        log: File for its output.
        work_dir: Where the run logs its evaluations, to show its progress.
    """

    def __init__(
        self, title: str, arguments: list[str], log: Path, work_dir: Path | None = None
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


def scalars(work_dir: Path) -> list[dict]:
    """What a run has logged so far; the last line may be cut while it is written."""
    rows = []
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def progress(title: str, work_dir: Path) -> str:
    """One run's last evaluation, e.g. 'teacher: epoch 3, AP 12.3'."""
    evaluated = [row for row in scalars(work_dir) if "coco/bbox_mAP" in row]
    if not evaluated:
        return ""
    return f"{title}: epoch {evaluated[-1]['step']}, AP {100 * ap(evaluated[-1]):.1f}"


def ap(row: dict, name: str = "bbox_mAP") -> float:
    """AP (0 to 1) of a logged evaluation; COCO says -1 where it has none."""
    return max(row[f"coco/{name}"], 0.0)


def curve(work_dir: Path) -> list[dict]:
    """AP after each epoch, with the iterations and the seconds of training so far."""
    rows, points, iteration, seconds = scalars(work_dir), [], 0, 0.0
    for row in rows:
        if "loss" in row:
            seconds += row["time"] * (row["iter"] - iteration)
            iteration = row["iter"]
        elif "coco/bbox_mAP" in row:
            points.append(dict(iteration=iteration, seconds=round(seconds, 1), bbox_mAP=ap(row)))
    return points


def checkpoint(work_dir: Path) -> str:
    """The last checkpoint of a run."""
    return (work_dir / "last_checkpoint").read_text().strip()
