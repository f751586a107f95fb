"""Studies: configs over several seeds, trained as processes, resumed, and reported in pairs.

A study file is read with :func:`read_study` and its runs are trained by :func:`train_all`;
:mod:`.study_report` compares what is finished.
"""

import argparse
import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import torch
from mmengine.config import Config, DictAction

from ..datasets import generate_shapes, holds_shapes
from .checkpoints import read_checkpoint
from .configs import read_file
from .errors import ConfigError
from .runs import ROOT, Job, ap, checkpoint, scalars, stop, training_clock

TRAIN = "tools/train.py"
SHAPES = "data/shapes"  # where the demo's configs look for their images
POLL_SECONDS = 0.5
# What a study sets itself.
RESERVED_OPTIONS = ("randomness.seed", "work_dir")
TEACHER_OPTION = "model.teacher.checkpoint"


Results = dict[str, dict[int, dict]]  # content of result.json by run and seed

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
    content = read_file(path, f"study {path!r}")._cfg_dict.to_dict()
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
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):  # it becomes a folder
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
    named = dict(teacher=entry.get("teacher"), baseline=entry.get("baseline"))
    for key, value in (*named.items(), *(("same_time", other) for other in same_time)):
        if not isinstance(value, str) and not (value is None and key != "same_time"):
            raise ConfigError(f"{where}.{key} must be a name, got {value!r}")
    options = {**common, **_check_options(f"{where}.options", entry.get("options", {}))}
    if entry.get("teacher") and TEACHER_OPTION in options:
        raise ConfigError(f"{where}: remove the option {TEACHER_OPTION!r}: 'teacher' sets it")
    return Run(
        name=name,
        title=str(entry.get("title", title)).replace("|", "/"),  # it stands in a table
        config=str(entry["config"]),
        options=options,
        seeds=seeds,
        **named,
        same_time=tuple(same_time),
    )


def _check_names(where: str, run: Run, teachers: dict, runs: dict) -> None:
    """Check that the names in a run are those of other entries."""
    if run.teacher is not None and run.teacher not in teachers:
        raise ConfigError(f"{where}: unknown teacher {run.teacher!r}; known: {_listed(teachers)}")
    baselines = () if run.baseline is None else (run.baseline,)
    for key, names in (("baseline", baselines), ("same_time", run.same_time)):
        for name in names:
            if name not in runs or name == run.name:
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
    config_sha256: str  # as of when the study was read
    data: dict | None = None
    teacher: "Task | None" = None
    given_teacher: dict | None = None  # of one that is none of the study's, as in the settings
    job: Job | None = field(default=None, repr=False)
    lock: IO | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.run.name}, seed {self.seed}"

    def settings(self) -> dict:
        """What makes the run what it is, as JSON would return it."""
        teacher = self.given_teacher
        if self.teacher is not None:
            digest = sha256(self.teacher.checkpoint()) if self.teacher.trained() else None
            teacher = dict(name=self.run.teacher, sha256=digest)
        settings = dict(
            config=self.run.config,
            config_sha256=self.config_sha256,
            options=self.run.options,
            seed=self.seed,
        )
        return json.loads(json.dumps({**settings, "teacher": teacher, "data": self.data}))

    def check(self) -> None:
        """Check that the folder holds this very run, or nothing.

        Raises:
            ConfigError: If what was started or finished here has other settings.
        """
        for name in ("result.json", "started.json"):
            if (self.folder / name).is_file():
                differing = self.differing(read_json(self.folder / name))
                if differing:
                    raise ConfigError(
                        f"{self.folder} holds a run of another {' and '.join(differing)}: delete "
                        "the folder to train it anew, or give another --work-dir"
                    )

    def differing(self, found: dict) -> list[str]:
        """Which settings of a finished or started run are others than this one's."""
        differing = []
        for key, value in self.settings().items():
            other = found.get(key)
            if other is None and (key == "config_sha256" or key == "teacher" and not self.teacher):
                continue  # from before this was noted
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

    def trained(self) -> bool:
        """Whether it is finished and its checkpoint has not been cleared away since."""
        pointer = self.folder / "last_checkpoint"
        return self.result() is not None and pointer.is_file() and self.checkpoint().is_file()

    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return Path(checkpoint(self.folder))

    def start(self) -> str:
        """Start or resume training; returns which.

        Raises:
            ConfigError: If the teacher's checkpoint is missing or is another one than at the first
                start, if the config or the images have changed since the study was read, or if
                another process trains in the folder.
        """
        if config_sha256(read_config(self.run.config)) != self.config_sha256:
            raise ConfigError(
                f"{self}: {self.run.config}, or what it inherits, has changed since this study was "
                "started, and the report would mix both: put it back, or start the study anew, "
                "which says what to delete"
            )
        given = self.given_teacher
        if given is not None and given != given_teacher(given["name"]):
            raise ConfigError(
                f"{self}: {given['name']} has changed since this study was started, and the report "
                "would mix the students of two teachers: put it back, or start the study anew, "
                "which says what to delete"
            )
        self.check_images()
        options = {**self.run.options, "randomness.seed": self.seed}
        settings = self.settings()
        if self.teacher is not None:
            if settings["teacher"]["sha256"] is None:
                raise ConfigError(
                    f"{self}: the checkpoint of teacher {self.run.teacher!r} is gone: bring it "
                    f"back; or delete {self.teacher.folder} and what it has taught, to train all "
                    "anew; or give another --work-dir"
                )
            options[TEACHER_OPTION] = str(self.teacher.checkpoint())
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        started, noted = self.folder / "started.json", {}
        if started.is_file():
            noted = read_json(started)
        for key, now in (("commits", commit()), ("machines", machine())):
            before = noted.get(key, [])
            settings[key] = before if now in before else [*before, now]
        write_atomically(started, json.dumps(settings, indent=1))
        arguments = [TRAIN, str(ROOT / self.run.config), "--work-dir", str(self.folder)]
        resumes = (self.folder / "last_checkpoint").is_file()
        if resumes:
            arguments += ["--resume", str(self.checkpoint())]  # wherever it was moved to
        arguments += ["--cfg-options", *(option(key, value) for key, value in options.items())]
        self.job = Job(str(self), arguments, self.folder / "train.log", locks=[self.lock])
        return "resumes" if resumes else "starts"

    def check_images(self) -> None:
        """Check that the study's images are still there.

        Raises:
            ConfigError: If others were generated in their place.
        """
        if self.data is not None and not holds_shapes(**shapes_of(self.data)):
            raise ConfigError(
                f"{self}: other images were generated in {shapes_of(self.data)['root']} since this "
                "study was started: give each study with images of its own a data.root of its own"
            )

    def _lock(self) -> None:
        """Keep others out; training holds the lock as well, and may outlive a study that is killed.

        Raises:
            ConfigError: If another process has it.
        """
        self.lock = open(self.folder / "lock", "w")  # noqa: SIM115  (until the run is finished)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.lock.close()
            raise ConfigError(
                f"{self}: another process trains in {self.folder}: wait until it is through, or "
                "give another --work-dir"
            ) from error

    def finish(self) -> None:
        """Write ``result.json`` after the process has ended, and remove earlier checkpoints.

        Raises:
            ConfigError: If the process failed, left no checkpoint or no evaluation, or saw other
                images than the study's: it is trained anew then, when the study is.
        """
        if failure := self.job.failure():
            raise ConfigError(failure)
        try:
            self.check_images()
        except ConfigError as error:
            (self.folder / "last_checkpoint").unlink(missing_ok=True)
            raise ConfigError(f"error: {error}") from error
        if not (self.folder / "last_checkpoint").is_file():
            raise ConfigError(f"error: {self} has written no checkpoint, see {self.job.log}")
        measured = measure(self.folder, self.checkpoint())
        curve = measured["curve"]
        if not curve or curve[-1]["iteration"] != measured["iterations"]:
            raise ConfigError(
                f"error: {self} has no evaluation of its last iteration, so there is no AP to "
                f"compare: see train_cfg.val_begin in its config, and {self.job.log}"
            )
        started = read_json(self.folder / "started.json")
        result = dict(
            {key: started.get(key) for key in self.settings()},
            commit=", ".join(filter(None, started["commits"])) or None,
            machine="; ".join(started.get("machines", [])) or None,
            **measured,
            bbox_mAP=curve[-1]["bbox_mAP"],
            best_bbox_mAP=max(point["bbox_mAP"] for point in curve),
        )
        write_atomically(self.folder / "result.json", json.dumps(result, indent=1))
        for path in self.folder.glob("*.pth"):
            if path != self.checkpoint():
                path.unlink()
        self.lock.close()


def make_tasks(study: Study, work_dir: Path) -> list[Task]:
    """All runs with all seeds in the order of training: the teachers, then seed by seed.

    Raises:
        ConfigError: If a folder holds a run with other settings, or a config cannot be read or
            says nothing of validation.
    """
    digests, given = {}, {}
    for run in (*study.teachers.values(), *study.runs.values()):
        if run.config in digests:
            continue
        cfg = read_config(run.config)
        digests[run.config] = config_sha256(cfg)
        teacher = cfg.get("model", {}).get("teacher") or {}
        given[run.config] = teacher.get("checkpoint")
        if cfg.get("val_dataloader") is None:
            raise ConfigError(
                f"{run.name}: {run.config} has no 'val_dataloader', so there is no AP to compare"
            )

    def make(run: Run, seed: int, teacher: Task | None = None) -> Task:
        folder = work_dir / run.name / f"seed-{seed}"
        checkpoint = run.options.get(TEACHER_OPTION, given[run.config])
        of_others = None if checkpoint is None or teacher else given_teacher(checkpoint)
        return Task(run, seed, folder, digests[run.config], study.data, teacher, of_others)

    teachers = {name: make(run, run.seeds[0]) for name, run in study.teachers.items()}
    tasks = list(teachers.values())
    for seed in study.seeds:
        tasks += [make(run, seed, teachers.get(run.teacher)) for run in study.runs.values()]
    for task in tasks:
        option(TEACHER_OPTION, str(task.folder))  # a path with a blank cannot be handed over
        task.check()
    return tasks


def given_teacher(checkpoint: str) -> dict:
    """What a run's settings say of a teacher that is none of its study's.

    Args:
        checkpoint: As it was given: a URL, or a path from the repository's root.
    """
    path = ROOT / checkpoint
    return dict(name=checkpoint, sha256=sha256(path) if path.is_file() else None)


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


def check_taught(tasks: list[Task]) -> None:
    """Check that no teacher would be trained anew that others have learnt from.

    Two checkpoints of one config and seed are two teachers, and a report takes them for one.

    Raises:
        ConfigError: If a finished or started run names a checkpoint of a teacher that has none.
    """
    for task in tasks:
        if task.teacher is None or task.teacher.result() is not None:
            continue
        for name in ("result.json", "started.json"):
            path = task.folder / name
            taught = read_json(path).get("teacher") if path.is_file() else None
            if taught and taught["sha256"]:
                raise ConfigError(
                    f"{task.folder} was taught by a checkpoint ({taught['sha256'][:8]}) of "
                    f"{task.run.teacher!r} that {task.teacher.folder} does not hold, and one "
                    "trained now would be another: bring it back; or delete the folders of all "
                    "that it has taught; or give another --work-dir"
                )


def make_data(study: Study) -> None:
    """Generate the study's images, unless they are there.

    Raises:
        ConfigError: If they cannot be generated as asked for.
    """
    if study.data is None:
        return
    try:
        generate_shapes(**shapes_of(study.data))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data: {error}") from error


def shapes_of(data: dict) -> dict:
    """A study's ``data`` as arguments of :func:`~kd_detr_mmdet.datasets.generate_shapes`."""
    return dict(
        root=ROOT / data.get("root", SHAPES),
        splits={name: data[name] for name in ("train", "val")},
        image_size=tuple(data["size"]),
        seed=data.get("seed", 0),
    )


def train_all(
    tasks: list[Task],
    jobs: int,
    after_each: Callable[[], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> list[str]:
    """Train what is not finished yet.

    Args:
        tasks: In the order in which to start them; a distilled one waits for its teacher only.
        jobs: How many run at a time.
        after_each: Called whenever a run is finished.
        meanwhile: Called at every look at the runs; what it raises ends them.

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
                if task.result() is not None:  # another process was at it as well
                    continue
                try:
                    print(f"{task}: {task.start()}", flush=True)
                except ConfigError as error:
                    failures.append(f"error: {error}")
                    break
                running.append(task)
            time.sleep(POLL_SECONDS)
            meanwhile()
            for task in [t for t in running if t.job.process.poll() is not None]:
                running.remove(task)
                try:
                    task.finish()
                except ConfigError as error:
                    failures.append(str(error))
                    continue
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
        dict: ``iterations`` trained; ``seconds`` of training without evaluation, by
            :func:`~kd_detr_mmdet.utils.runs.training_clock`; ``curve``, for each evaluation the
            ``iteration``, the ``seconds`` until then, ``bbox_mAP`` and ``bbox_mAP_50`` (0 to 1).
    """
    meta = read_checkpoint(str(path), "checkpoint")["meta"]
    iterations = meta["iter"]
    # An evaluation is logged with its epoch. Of training only every so many iterations are logged,
    # and often not the last ones of an epoch.
    epochs = meta["epoch"] if path.name.startswith("epoch_") else None
    aps, last, rows = {}, 0, scalars(folder)
    for row in rows:
        if "loss" in row:
            last = row["iter"]
        elif "iter" not in row:  # with it, all steps since the last logged ones were left out
            aps[row["step"] * iterations // epochs if epochs else last] = row
    clock = training_clock(rows)
    seconds = clock(iterations)
    curve = [
        dict(
            iteration=iteration,
            seconds=round(clock(iteration), 3),
            bbox_mAP=ap(row),
            bbox_mAP_50=ap(row, "bbox_mAP_50"),
        )
        for iteration, row in sorted(aps.items())
        if iteration <= iterations and not math.isnan(seconds)
    ]
    return dict(iterations=iterations, seconds=round(seconds, 3), curve=curve)


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


def machine() -> str:
    """This machine: processor, PyTorch, and the GPU if there is one to train on."""
    parts = [platform.machine(), f"{os.cpu_count()} CPUs", f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def read_config(path: str) -> Config:
    """A config of a study, whose path starts at the repository's root.

    Raises:
        ConfigError: If it cannot be read.
    """
    return read_file(ROOT / path, f"config {path!r}")


def config_sha256(cfg: Config) -> str:
    """SHA-256 of what a config says, with all that it inherits, wherever the repository lies."""
    content = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(content.replace(str(ROOT), "").encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _sha256(path: Path, *_: int) -> str:  # of every task anew it would be read for minutes
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # others may write it as well
    temporary.write_text(text)
    os.replace(temporary, path)


def collect(tasks: list[Task]) -> Results:
    """The results of the finished runs."""
    results: Results = {}
    for task in tasks:
        result = task.result()
        if result is not None:
            results.setdefault(task.run.name, {})[task.seed] = result
    return results


def read_report(path: Path) -> dict:
    """The content of a study's report.json.

    Raises:
        ConfigError: If it is missing, or no report.
    """
    if not path.is_file():
        raise ConfigError(f"no file {str(path)!r}: give the report.json of a study")
    try:
        report = json.loads(path.read_text())
    except ValueError:
        report = None
    if not isinstance(report, dict) or not {"rows", "machine"} <= report.keys():
        raise ConfigError(f"{path} is no report of tools/study.py: give its report.json")
    return report


def results_of(report: dict) -> Results:
    """The results in a report, as :func:`collect` gives them: JSON has strings for seeds."""
    return {
        name: {int(seed): result for seed, result in row["results"].items()}
        for name, row in report["rows"].items()
    }


def add_report(study: Study, work_dir: Path, path: Path, results: Results) -> list[dict]:
    """Add the seeds of a report, trained elsewhere: on another machine, or by another checkpoint.

    Runs are compared within a seed. So a seed comes from one place as a whole: its runs share a
    machine and a teacher's checkpoint. A teacher's result that is in ``results`` already stays.

    Args:
        study: As of here.
        work_dir: Of the study here.
        path: The ``report.json``.
        results: Of reports added before; those of this one are added.

    Returns:
        list[dict]: What to say of them in the new report, for each place where they were trained:
            ``path``, ``machine``, ``seeds`` and the ``teachers``' AP in percent by title.

    Raises:
        ConfigError: If it is no report, or tells of runs with other settings, or of seeds that are
            trained here or in ``results`` already.
    """
    report = read_report(path)
    found = results_of(report)
    unknown = found.keys() - {*study.runs, *study.teachers}
    if unknown:
        raise ConfigError(
            f"--add: {path} has the run {min(unknown)!r}, which {study.path} does not: it is of "
            "another study"
        )
    for name, teacher in study.teachers.items():
        if other := set(found.get(name, ())) - set(teacher.seeds):
            raise ConfigError(
                f"--add: the teacher {name!r} of {path} was trained with seed {min(other)}, here "
                f"it is {teacher.seeds[0]}: it is of another study"
            )
    seeds = sorted({seed for name in found if name in study.runs for seed in found[name]})
    here = {*study.seeds, *(seed for name in study.runs for seed in results.get(name, {}))}
    for seed in seeds:
        if seed in here:
            raise ConfigError(
                f"--add: seed {seed} is in {path}, and here or in another report: a seed comes "
                "from one place, so that its runs share a machine and a teacher; train other seeds "
                "here (--seeds)"
            )
    for task in make_tasks(replace(study, seeds=tuple(seeds)), work_dir):
        result = found.get(task.run.name, {}).get(task.seed)
        if result is None:
            continue
        teacher = result["teacher"] and {**result["teacher"], "sha256": None}
        differing = task.differing({**result, "teacher": teacher})
        if differing:
            raise ConfigError(
                f"--add: {task} in {path} is a run of another {' and '.join(differing)}"
            )
        results.setdefault(task.run.name, {}).setdefault(task.seed, result)
    rows = [report["rows"][name] for name in study.teachers if name in report["rows"]]
    others = report.get("added", [])
    note = dict(
        path=os.path.relpath(path, ROOT),
        machine=report["machine"],
        seeds=[seed for seed in seeds if not any(seed in other["seeds"] for other in others)],
        teachers={row["title"]: row["ap"] for row in rows},
    )
    return [note, *others]
