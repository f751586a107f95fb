"""Peak memory on a CPU, of which a process can tell its own alone."""

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings


def peak_growth(
    function: Callable, *arguments: Any, custom_imports: dict | None = None
) -> int | None:
    """Peak bytes that a function adds to a process of its own.

    Python and its packages, which everything here needs, are not in it.

    Args:
        function: Of a module, to be called in the child; what it returns is dropped.
        arguments: Of the function; they are pickled.
        custom_imports: As in a config.

    Returns:
        int | None: None where the system does not tell: it has to be Linux.
    """
    if not sys.platform.startswith("linux"):
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        given = (function, arguments, torch.get_num_threads(), custom_imports)
        return pool.apply(_growth, given)


def _growth(function: Callable, arguments: tuple, threads: int, custom_imports: dict | None) -> int:
    """In the child: how far its peak of resident memory lies above what it began with."""
    warnings.simplefilter("ignore")  # the parent has shown them
    torch.set_num_threads(threads)
    init_default_scope("mmdet")
    import_modules_from_strings(**custom_imports or dict(imports=[]))
    torch.nn.Conv2d(3, 8, 3)(torch.rand(1, 3, 32, 32))  # libraries load at their first use
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    function(*arguments)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(kib)
