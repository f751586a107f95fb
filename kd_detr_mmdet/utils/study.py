"""Studies: configs over several seeds, trained as processes, resumed, and reported in pairs.

A study file is read with :func:`read_study`, its runs are trained by :func:`train_all`, and
:func:`write_report` compares what is finished.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch
from mmengine.config import Config, DictAction
from scipy import stats

from ..datasets import generate_shapes
from .errors import ConfigError
from .runs import ROOT, Job, ap, checkpoint, scalars, stop

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TRAIN, TEST = "tools/train.py", "tools/test.py"
SHAPES = "data/shapes"  # where the demo's configs look for their images
EQUAL_TIME = 1.03  # what still counts as the same training time, as a factor
POLL_SECONDS = 0.5
# What a study sets itself.
RESERVED_OPTIONS = ("randomness.seed", "work_dir")
TEACHER_OPTION = "model.teacher.checkpoint"


# --------------------------------------------------------------------------------------------------
# The study file


@dataclass(frozen=True)
class Run:
    """One config of a study, to be trained with each of its seeds; of a teacher, with one."""

    name: str
    title: str
    config: str
    options: dict  # the study's and its own, by dotted key
    seeds: tuple[int, ...]
    teacher: str | None = None
    baseline: str | None = None
    same_time: tuple[str, ...] = ()  # what it is compared with at equal training time


@dataclass(frozen=True)
class Study:
    """What a study file says."""

    title: str
    path: str
    seeds: tuple[int, ...]
    teachers: dict[str, Run]
    runs: dict[str, Run]  # in the order of the table
    data: dict | None = None  # images to generate


def read_study(path: str, seeds: Iterable[int] | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: Of the file.
        seeds: Instead of the file's.

    Raises:
        ConfigError: If the file is missing, cannot be read, or says anything that does not fit.
    """
    if not Path(path).is_file():
        raise ConfigError(f"no study file {path!r}: check its path")
    try:
        content = Config.fromfile(path)._cfg_dict.to_dict()
    except Exception as error:  # it is a program: it may fail in any way
        raise ConfigError(
            f"study {path!r} cannot be read: {type(error).__name__}: {error}"
        ) from error
    content = {key: value for key, value in content.items() if not key.startswith("_")}
    required, optional = ("seeds", "runs"), ("title", "options", "data", "teachers")
    _check_keys(f"study {path!r}", content, required, optional)
    common = _check_options("options", content.get("options", {}))
    seeds = _check_seeds("seeds", content["seeds"] if seeds is None else list(seeds))
    data = _check_data(content["data"]) if content.get("data") is not None else None

    teachers, runs = {}, {}
    for name, entry in _entries("teachers", content.get("teachers", {})):
        where = f"teachers.{name}"
        _check_keys(where, entry, ("config",), ("title", "options", "seed"))
        seed = _check_seeds(f"{where}.seed", [entry.get("seed", 0)])
        teachers[name] = _read_run(where, name, entry, common, seed, f"teacher {name}")
    entries = dict(_entries("runs", content["runs"]))
    if not entries:
        raise ConfigError(f"study {path!r}: 'runs' is empty: name at least one run")
    for name, entry in entries.items():
        where = f"runs.{name}"
        optional = ("title", "options", "teacher", "baseline", "same_time")
        _check_keys(where, entry, ("config",), optional)
        if name in teachers:
            raise ConfigError(f"{where}: a teacher has that name too: rename one of them")
        runs[name] = _read_run(where, name, entry, common, seeds, name)
        _check_names(where, runs[name], teachers, entries)
    return Study(str(content.get("title", Path(path).stem)), path, seeds, teachers, runs, data)


def _entries(where: str, entries: object) -> Iterable[tuple[str, dict]]:
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise ConfigError(f"{where} must be a dict of dicts by name")
    for name in entries:
        if not re.fullmatch(r"[\w-]+", str(name)):  # it becomes a folder
            raise ConfigError(f"{where}: bad name {name!r}: use letters, digits, '_' and '-'")
    return entries.items()


def _read_run(
    where: str, name: str, entry: dict, common: dict, seeds: tuple[int, ...], title: str
) -> Run:
    if not Path(ROOT, str(entry["config"])).is_file():
        raise ConfigError(
            f"{where}: no config file {entry['config']!r}: paths start at the repository's root"
        )
    same_time = entry.get("same_time")
    if same_time is None:
        same_time = [entry["baseline"]] if entry.get("baseline") else []
    if not isinstance(same_time, (list, tuple)):
        raise ConfigError(f"{where}.same_time must be a list of names, got {same_time!r}")
    options = {**common, **_check_options(f"{where}.options", entry.get("options", {}))}
    if entry.get("teacher") and TEACHER_OPTION in options:
        raise ConfigError(f"{where}: remove the option {TEACHER_OPTION!r}: 'teacher' sets it")
    return Run(
        name=name,
        title=str(entry.get("title", title)).replace("|", "/"),  # it stands in a table
        config=str(entry["config"]),
        options=options,
        seeds=seeds,
        teacher=entry.get("teacher"),
        baseline=entry.get("baseline"),
        same_time=tuple(same_time),
    )


def _check_names(where: str, run: Run, teachers: dict, runs: dict) -> None:
    """Check that the names in a run are those of other entries."""
    if run.teacher is not None and run.teacher not in teachers:
        raise ConfigError(f"{where}: unknown teacher {run.teacher!r}; known: {_listed(teachers)}")
    for key, names in (("baseline", [run.baseline]), ("same_time", run.same_time)):
        for name in names:
            if name is not None and (name not in runs or name == run.name):
                others = _listed(other for other in runs if other != run.name)
                raise ConfigError(f"{where}: unknown {key} {name!r}; other runs: {others}")
    if run.same_time and run.baseline is None:
        raise ConfigError(f"{where}: 'same_time' needs a 'baseline' beside it")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _check_keys(where: str, given: dict, required: tuple, optional: tuple) -> None:
    for key in required:
        if key not in given:
            raise ConfigError(f"{where}: {key!r} is missing")
    for key in given:
        if key not in required + optional:
            raise ConfigError(
                f"{where}: unknown key {key!r}; known: {_listed(required + optional)}"
            )


def _check_seeds(where: str, seeds: object) -> tuple[int, ...]:
    if not isinstance(seeds, (list, tuple)) or not seeds:
        raise ConfigError(f"{where} must be a list of at least one integer, got {seeds!r}")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"{where}: a seed is an integer of at least 0, got {seed!r}")
    twice = [seed for seed in seeds if list(seeds).count(seed) > 1]
    if twice:
        raise ConfigError(f"{where}: seed {twice[0]} is given more than once: remove one")
    return tuple(seeds)


def _check_data(data: object) -> dict:
    if not isinstance(data, dict):
        raise ConfigError(f"data must be a dict, got {data!r}")
    _check_keys("data", data, ("train", "val", "size"), ("root", "seed"))
    return data


def _check_options(where: str, options: object) -> dict:
    if not isinstance(options, dict):
        raise ConfigError(f"{where} must be a dict of values by dotted key, got {options!r}")
    for key, value in options.items():
        if key in RESERVED_OPTIONS:
            raise ConfigError(f"{where}: remove {key!r}: the study sets it")
        try:
            option(key, value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return options


def option(key: str, value: object) -> str:
    """A setting as an argument behind ``--cfg-options``.

    Raises:
        ConfigError: If MMEngine would not read the very same value from it.
    """

    def text(value: object) -> str:
        if isinstance(value, list):
            return f"[{','.join(map(text, value))}]"
        if isinstance(value, tuple):
            return f"({','.join(map(text, value))})"
        return str(value)

    argument = f"{key}={text(value)}"
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--options", nargs="+", action=DictAction)
    read = None
    with contextlib.suppress(AssertionError, argparse.ArgumentError, SystemExit, ValueError):
        read = parser.parse_args(["--options", argument]).options
    # By their text: True is 1, and (1,) is no list.
    if repr(read) != repr({key: value}):
        raise ConfigError(
            f"{key!r} cannot be set to {value!r} from a command line: use numbers, True, False, "
            "None, texts without blanks, commas and brackets, lists of these, and dotted keys "
            "instead of dicts, or write a config"
        )
    return argument


# --------------------------------------------------------------------------------------------------
# Training


@dataclass
class Task:
    """A run of a study with one seed: its folder, and what happens there.

    ``started.json`` names the settings from the first start on, ``result.json`` is there when the
    run is finished.
    """

    run: Run
    seed: int
    folder: Path
    data: dict | None = None
    teacher: "Task | None" = None
    job: Job | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.run.name}, seed {self.seed}"

    def settings(self) -> dict:
        """What makes the run what it is, as JSON would return it."""
        teacher = None
        if self.teacher is not None:
            path = self.teacher.checkpoint() if self.teacher.result() else None
            digest = sha256(path) if path is not None and path.is_file() else None
            teacher = dict(name=self.run.teacher, sha256=digest)
        settings = dict(config=self.run.config, options=self.run.options, seed=self.seed)
        return json.loads(json.dumps({**settings, "teacher": teacher, "data": self.data}))

    def check(self) -> None:
        """Check that the folder holds this very run, or nothing.

        Raises:
            ConfigError: If what was started or finished here has other settings.
        """
        for name in ("result.json", "started.json"):
            if (self.folder / name).is_file():
                differing = self._differing(read_json(self.folder / name))
                if differing:
                    raise ConfigError(
                        f"{self.folder} holds a run of another {' and '.join(differing)}: delete "
                        "the folder to train it anew, or give another --work-dir"
                    )

    def _differing(self, found: dict) -> list[str]:
        differing = []
        for key, value in self.settings().items():
            other = found.get(key)
            if key == "teacher" and value and other and None in (value["sha256"], other["sha256"]):
                # The teacher is not trained yet, or its checkpoint has been cleared away.
                value, other = value["name"], other["name"]
            if value != other:
                differing.append(f"{key} ({json.dumps(other)} instead of {json.dumps(value)})")
        return differing

    def result(self) -> dict | None:
        """Content of ``result.json``; None while the run is not finished."""
        path = self.folder / "result.json"
        return read_json(path) if path.is_file() else None

    def checkpoint(self) -> Path:
        """The last checkpoint, wherever the folder was moved to since."""
        return self.folder / Path(checkpoint(self.folder)).name

    def start(self) -> str:
        """Start or resume training; returns which.

        Raises:
            ConfigError: If the teacher's checkpoint is missing or is another one than at the first
                start.
        """
        options = {**self.run.options, "randomness.seed": self.seed}
        settings = self.settings()
        if self.teacher is not None:
            if settings["teacher"]["sha256"] is None:
                raise ConfigError(
                    f"{self}: the checkpoint of teacher {self.run.teacher!r} is gone: delete "
                    f"{self.teacher.folder} to train it anew"
                )
            options[TEACHER_OPTION] = str(self.teacher.checkpoint())
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        started, commits = self.folder / "started.json", []
        if started.is_file():
            commits = read_json(started)["commits"]
        commits += [now for now in [commit()] if now not in commits]
        write_atomically(started, json.dumps({**settings, "commits": commits}, indent=1))
        arguments = [TRAIN, str(ROOT / self.run.config), "--work-dir", str(self.folder)]
        resumes = (self.folder / "last_checkpoint").is_file()
        if resumes:
            arguments.append("--resume")
        arguments += ["--cfg-options", *(option(key, value) for key, value in options.items())]
        self.job = Job(str(self), arguments, self.folder / "train.log")
        return "resumes" if resumes else "starts"

    def advance(self) -> bool:
        """Go on after the process has ended; returns whether the run is finished.

        Raises:
            ConfigError: If the process failed, or left no checkpoint or no evaluation.
        """
        if failure := self.job.failure():
            raise ConfigError(failure)
        if not (self.folder / "last_checkpoint").is_file():
            raise ConfigError(f"error: {self} has written no checkpoint, see {self.job.log}")
        measured = measure(self.folder, self.checkpoint())
        if measured["curve"] and measured["curve"][-1]["iteration"] == measured["iterations"]:
            self._finish(measured)
            return True
        if (self.folder / "evaluation.json").is_file():
            raise ConfigError(f"error: {self} has logged no training, see {self.folder}")
        self._evaluate()
        return False

    def _evaluate(self) -> None:
        """Evaluate the last checkpoint: the run was interrupted before or during its last one."""
        cfg = Config.fromfile(ROOT / self.run.config)
        cfg.merge_from_dict(self.run.options)
        for key in ("dataloader", "evaluator"):  # as in training, not on a test split
            if cfg.get(f"val_{key}") is None:
                raise ConfigError(
                    f"error: {self}: the config has no 'val_{key}', so there is no AP to compare"
                )
            cfg[f"test_{key}"] = cfg[f"val_{key}"]
        cfg.dump(self.folder / "evaluate.py")
        arguments = [TEST, str(self.folder / "evaluate.py"), str(self.checkpoint())]
        arguments += ["--work-dir", str(self.folder / "evaluation")]
        arguments += ["--out", str(self.folder / "evaluation.json")]
        self.job = Job(str(self), arguments, self.folder / "test.log")

    def _finish(self, measured: dict) -> None:
        """Write ``result.json`` and remove earlier checkpoints."""
        started = read_json(self.folder / "started.json")
        curve = measured["curve"]
        result = dict(
            {key: started[key] for key in self.settings()},
            commit=", ".join(filter(None, started["commits"])) or None,
            **measured,
            bbox_mAP=curve[-1]["bbox_mAP"],
            best_bbox_mAP=max(point["bbox_mAP"] for point in curve),
        )
        write_atomically(self.folder / "result.json", json.dumps(result, indent=1))
        for path in self.folder.glob("*.pth"):
            if path != self.checkpoint():
                path.unlink()


def make_tasks(study: Study, work_dir: Path) -> list[Task]:
    """All runs with all seeds in the order of training: the teachers, then seed by seed.

    Raises:
        ConfigError: If a folder holds a run with other settings.
    """
    teachers = {
        name: Task(run, run.seeds[0], _folder(work_dir, run, run.seeds[0]), study.data)
        for name, run in study.teachers.items()
    }
    tasks = list(teachers.values())
    for seed in study.seeds:
        for run in study.runs.values():
            folder = _folder(work_dir, run, seed)
            tasks.append(Task(run, seed, folder, study.data, teachers.get(run.teacher)))
    for task in tasks:
        option(TEACHER_OPTION, str(task.folder))  # a path with a blank cannot be handed over
        task.check()
    return tasks


def _folder(work_dir: Path, run: Run, seed: int) -> Path:
    return work_dir / run.name / f"seed-{seed}"


def select(tasks: list[Task], names: Iterable[str] | None) -> list[Task]:
    """The tasks of some runs or teachers, with the teachers that they need; all without names.

    Raises:
        ConfigError: If a name is unknown.
    """
    if names is None:
        return tasks
    names, known = set(names), {task.run.name: task.run for task in tasks}
    for name in sorted(names - set(known)):
        raise ConfigError(f"--runs: unknown run {name!r}; known: {_listed(known)}")
    names |= {known[name].teacher for name in names}
    return [task for task in tasks if task.run.name in names]


def make_data(study: Study) -> None:
    """Generate the study's images, unless they are there.

    Raises:
        ConfigError: If they cannot be generated as asked for.
    """
    if study.data is None:
        return
    data = study.data
    splits = {name: data[name] for name in ("train", "val")}
    try:
        root = ROOT / data.get("root", SHAPES)
        generate_shapes(root, splits, tuple(data["size"]), data.get("seed", 0))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data: {error}") from error


def train_all(tasks: list[Task], jobs: int, after_each: Callable[[], None]) -> list[str]:
    """Train what is not finished yet.

    Args:
        tasks: In the order in which to start them; a distilled one waits for its teacher only.
        jobs: How many run at a time.
        after_each: Called whenever a run is finished.

    Returns:
        list[str]: What failed, for the user; nothing is started after the first failure.
    """
    waiting = [task for task in tasks if task.result() is None]
    running: list[Task] = []
    failures: list[str] = []
    try:
        while running or (waiting and not failures):
            ready = [t for t in waiting if t.teacher is None or t.teacher.result() is not None]
            for task in ready[: jobs - len(running)] if not failures else ():
                waiting.remove(task)
                try:
                    print(f"{task}: {task.start()}", flush=True)
                except ConfigError as error:
                    failures.append(f"error: {error}")
                    break
                running.append(task)
            time.sleep(POLL_SECONDS)
            for task in [t for t in running if t.job.process.poll() is not None]:
                try:
                    finished = task.advance()
                except ConfigError as error:
                    running.remove(task)
                    failures.append(str(error))
                    continue
                if finished:
                    running.remove(task)
                    result = task.result()
                    points, seconds = 100 * result["bbox_mAP"], result["seconds"]
                    print(f"{task}: AP {points:.1f}, {seconds:.0f} s of training", flush=True)
                    after_each()
    finally:  # also on Ctrl-C: leave no process behind
        stop([task.job for task in running])
    return failures


def measure(folder: Path, path: Path) -> dict:
    """What a run's logs say about it.

    Args:
        folder: Of the run.
        path: Its last checkpoint.

    Returns:
        dict: ``iterations`` trained; ``seconds`` of training without evaluation, the iterations
            times the median of the logged times of one, so that neither a busy moment nor an
            interruption counts; ``curve``, for each evaluation the ``iteration``, the ``seconds``
            until then, ``bbox_mAP`` and ``bbox_mAP_50`` (0 to 1).
    """
    meta = torch.load(path, map_location="cpu", weights_only=False)["meta"]
    iterations = meta["iter"]
    # An evaluation is logged with its epoch. Of training only every so many iterations are logged,
    # and often not the last ones of an epoch.
    epochs = meta["epoch"] if path.name.startswith("epoch_") else None
    aps, times, last = {}, [], 0
    for row in scalars(folder):
        if "loss" in row:
            last = row["iter"]
            times.append(row["time"])
        elif "coco/bbox_mAP" in row:
            # Written once more by a run that was started again: the later one counts.
            aps[row["step"] * iterations // epochs if epochs else last] = row
    if (folder / "evaluation.json").is_file():
        aps[iterations] = read_json(folder / "evaluation.json")
    second = statistics.median(times) if times else math.nan
    curve = [
        dict(
            iteration=iteration,
            seconds=round(iteration * second, 3),
            bbox_mAP=ap(row),
            bbox_mAP_50=ap(row, "bbox_mAP_50"),
        )
        for iteration, row in sorted(aps.items())
        if iteration <= iterations and times
    ]
    return dict(iterations=iterations, seconds=round(iterations * second, 3), curve=curve)


def commit() -> str | None:
    """The repository's commit, with a '+' if tracked files differ from it; None without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        done.check_returncode()
        return done.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> dict:
    """Content of a JSON file.

    Raises:
        ConfigError: If it is not valid.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): delete it") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file at once: whoever reads it meanwhile sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


# --------------------------------------------------------------------------------------------------
# The report

Results = dict[str, dict[int, dict]]  # content of result.json by run and seed


def collect(tasks: list[Task]) -> Results:
    """The results of the finished runs."""
    results: Results = {}
    for task in tasks:
        result = task.result()
        if result is not None:
            results.setdefault(task.run.name, {})[task.seed] = result
    return results


def write_report(out: Path, study: Study, results: Results) -> None:
    """Write report.md, report.json and report.png.

    Raises:
        ConfigError: If no run is finished.
    """
    if not results:
        raise ConfigError(f"study {study.path!r}: no run is finished yet, nothing to report")
    out.mkdir(parents=True, exist_ok=True)
    report = summarize(study, results)
    write_atomically(out / "report.json", json.dumps(report, indent=1))
    write_atomically(out / "report.md", markdown(report))
    draw(out / "report.png", study, results)


def summarize(study: Study, results: Results) -> dict:
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
    commits = {r["commit"] or "none" for by_seed in results.values() for r in by_seed.values()}
    return dict(
        title=study.title,
        rows=rows,
        gains=gains,
        seeds=sorted({seed for name in study.runs for seed in results.get(name, {})}),
        commits=sorted(commits),
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
        command=f"python tools/study.py {study.path}",
    )


def compare(run: Run, results: Results) -> dict:
    """A run against its baseline and others, seed by seed.

    Args:
        run: With a baseline.
        results: Of all runs; a seed counts where all runs that are compared have finished it.

    Returns:
        dict: ``equal_iterations``, ``equal_time`` and ``plateau``, gains in AP as
            :func:`interval` tells them, and ``time_to_baseline``: the time to the baseline's best
            AP as a share of the baseline's own (``median``, None for never; ``per_seed``;
            ``reached`` of ``seeds``).
    """
    own, base = results.get(run.name, {}), results.get(run.baseline, {})
    equal_iterations, equal_time, plateau, shares = {}, {}, {}, {}
    for seed in sorted(own.keys() & base.keys()):
        mine, theirs = own[seed], base[seed]
        if mine["iterations"] == theirs["iterations"]:
            equal_iterations[seed] = 100 * (mine["bbox_mAP"] - theirs["bbox_mAP"])
        goal = theirs["best_bbox_mAP"]
        reached = seconds_to(goal, mine["curve"])
        shares[seed] = math.inf if reached is None else reached / seconds_to(goal, theirs["curve"])
        if all(seed in results.get(name, {}) for name in run.same_time):
            others = [results[name][seed] for name in run.same_time]
            best = max(other["best_bbox_mAP"] for other in others)
            plateau[seed] = 100 * (mine["best_bbox_mAP"] - best)
            within = [
                point["bbox_mAP"]
                for other in others
                for point in other["curve"]
                if point["seconds"] <= EQUAL_TIME * mine["seconds"]
            ]
            if within:
                equal_time[seed] = 100 * (mine["bbox_mAP"] - max(within))
    median = statistics.median(shares.values()) if shares else math.inf
    return dict(
        baseline=run.baseline,
        same_time=list(run.same_time),
        equal_iterations=interval(equal_iterations),
        equal_time=interval(equal_time),
        plateau=interval(plateau),
        time_to_baseline=dict(
            median=median if math.isfinite(median) else None,
            per_seed={seed: s if math.isfinite(s) else None for seed, s in shares.items()},
            reached=sum(map(math.isfinite, shares.values())),
            seeds=len(shares),
        ),
    )


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


def seconds_to(goal: float, curve: list[dict]) -> float | None:
    """Seconds of training until an AP (0 to 1) was first reached; None for never."""
    return next((point["seconds"] for point in curve if point["bbox_mAP"] >= goal), None)


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
            "equal iterations: the baseline trained for others; at equal time: none of the others was "
            "evaluated so early. Equal time: against the best AP "
            f"that the runs named last reached in as many seconds (and {EQUAL_TIME - 1:.0%} "
            "more). Time to the baseline's best AP: as a share of the baseline's own; the median "
            "over seeds (how many reached it at all).",
        ]
    lines += [
        "",
        f"Seeds {' '.join(map(str, report['seeds']))}; commit {', '.join(report['commits'])}; "
        f"{report['machine']}; `{report['command']}`",
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
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    plt.close(figure)
    os.replace(temporary, path)
