"""What the command-line tools share: options, quiet start, one-line errors."""

import argparse
import contextlib
import datetime
import difflib
import inspect
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from .configs import check_names, read_file
from .errors import MEND_TOO_SMALL, TOO_SMALL, ConfigError, NonFiniteLossError

TIMEOUT_S = 600  # for which a process waits for the others


class Settings(DictAction):
    """MMEngine's ``key=value`` options, with a line instead of a traceback for another form."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        try:
            super().__call__(parser, *args)
        except (AssertionError, ValueError) as error:
            values = args[1]
            parser.error(f"{self.option_strings[0]} takes key=value, got {values}: {error}")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that train.py and test.py share with MMDetection's own tools."""
    parser.add_argument("--work-dir", help="where to save logs and checkpoints")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Settings,
        help="override settings of the config: key=value, nested keys with dots, lists as "
        'key="[a,b]"',
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how the processes of a distributed run were started",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def check_picture(path: Path) -> None:
    """Refuse a picture's file by its ending, before the work is done.

    Raises:
        ConfigError: With the endings that it may have.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--out must end in .png, .svg or .pdf, got {str(path)!r}")


def read_config(args: argparse.Namespace) -> Config:
    """Read a config file and apply the common options.

    Raises:
        ConfigError: If the file is missing or cannot be read, or an option leads nowhere.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    path = Path(args.config)
    if not path.is_file():
        raise ConfigError(f"no config file {args.config!r}: check its path")
    cfg = read_file(path, f"config {args.config!r}")
    options = args.cfg_options or {}
    check_names(cfg, options)
    for option, value in options.items():
        try:
            cfg.merge_from_dict({option: value})
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--cfg-options cannot set {option!r} in {args.config!r}: {error}"
            ) from error
    if any(isinstance(hook, str) for hook in cfg.get("custom_hooks") or ()):
        raise ConfigError(
            "custom_hooks is a list of dicts, which a config file can hold and no option"
        )
    if args.work_dir:
        cfg.work_dir = args.work_dir
    cfg.setdefault("work_dir", os.path.join("work_dirs", path.stem))
    if not isinstance(cfg.get("model"), dict) or "type" not in cfg.model:
        raise ConfigError(f"config {args.config!r} holds no 'model' with a 'type'")
    cfg.launcher = args.launcher
    if args.launcher != "none":
        env = cfg.setdefault("env_cfg", {}).setdefault("dist_cfg", dict(backend="nccl"))
        timeout = datetime.timedelta(seconds=env.setdefault("timeout", TIMEOUT_S))
    if args.launcher == "pytorch" and not torch.cuda.is_available():
        # MMEngine's own launch and wrapper ask for a GPU before they look at the backend.
        torch.distributed.init_process_group("gloo", timeout=timeout)
        cfg.setdefault(
            "model_wrapper_cfg",
            dict(
                type="MMDistributedDataParallel",
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get("find_unused_parameters", False),
            ),
        )
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build a Runner with its hundreds of lines on versions and hooks in the log file alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        runner = Runner.from_cfg(cfg)
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if isinstance(getattr(handler, "stream", None), io.StringIO):
                handler.setStream(sys.stdout)
    return runner


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on stderr and exit code 2 where the user can mend the cause."""
    warnings.filterwarnings("ignore", module=r"(torch|mmdet|mmcv|mmengine)\b")
    try:
        yield
        if torch.distributed.is_initialized():
            # Left to Python's exit, a rank can lose its peers while Gloo still listens, and abort.
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except Exception as error:
        reason = _for_the_user(error)
        if reason is None:
            raise
        sys.stdout.flush()
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)


def _for_the_user(error: Exception) -> str | None:
    """The line that tells a user what to mend; None for a fault of the program."""
    # An image that fails within a data loader worker comes back with the worker's traceback.
    line = (str(error).strip().splitlines() or [""])[-1]
    if isinstance(error, (ConfigError, NonFiniteLossError)):
        return str(error)
    if isinstance(error, OSError) or (
        isinstance(error, AssertionError) and "failed to load image" in line
    ):
        return line
    if isinstance(error, (RuntimeError, ValueError)) and any(told in line for told in TOO_SMALL):
        if "_predict_by_feat_single" in {
            frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)
        }:
            return (
                "test_cfg.max_per_img is more than the detector's queries times its classes: lower "
                "it in the model's config"
            )
        where = "in the data's pipelines (a teacher sees its student's)"
        return f"{MEND_TOO_SMALL} {where}, or fewer queries"
    # Gloo raises no class of its own.
    if isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    ):
        return (
            "another process of this run has ended, or did not answer within "
            "env_cfg.dist_cfg.timeout; its output says why. Continue with --resume "
            f"({line})"
        )
    if isinstance(error, TypeError) and "unexpected keyword argument" in line:
        return f"unknown option in the config: {line}{_known_options(error, line)}"
    if isinstance(error, ValueError) and line.startswith("batch_size should be"):
        return f"a data loader of the config: {line}"
    if isinstance(error, KeyError) and 'must contain the key "type"' in line:
        reason = str(error.args[0]).splitlines()[0]
        return f"a part of the config has no type, as one whose name is misspelt: {reason}"
    if isinstance(error, KeyError) and "registry" in line:
        return f"unknown type in the config: {line.strip(chr(34))}"
    if refused := _refused_by(error):
        return f"{refused} cannot be built from the config: {line.strip(chr(34))}"
    return None


def _known_options(error: TypeError, line: str) -> str:
    """What the class that refused an option takes, and which of it was probably meant."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    classes = [f.f_locals["obj_cls"] for f in frames if "obj_cls" in f.f_locals]
    bases = classes[-1].__mro__ if classes and inspect.isclass(classes[-1]) else ()
    if not any(f"{cls.__name__}.__init__()" in line for cls in bases):
        return ""  # raised by what that class has called
    names = []
    for cls in bases:
        if "__init__" not in vars(cls):
            continue
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break  # it hands nothing on to its parents
    known = sorted(set(names))
    meant = difflib.get_close_matches(line.split("'")[-2], known, 1)
    hint = f": {meant[0]!r} is meant?" if meant else ";"
    return f"{hint} {bases[0].__name__} takes {', '.join(known)}"


def _refused_by(error: Exception) -> str | None:
    """The class of a part of the config whose own constructor has raised this; None for others."""
    if not isinstance(error, (AssertionError, KeyError, TypeError, ValueError)):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    built = any(frame.f_code.co_name == "build_from_cfg" for frame in frames)
    if built and frames[-1].f_code.co_name == "__init__":
        return type(frames[-1].f_locals.get("self")).__name__
    # The official MMEngine raises it anew, with the class.
    return "a part" if str(error).strip("\"'").startswith("class `") else None
