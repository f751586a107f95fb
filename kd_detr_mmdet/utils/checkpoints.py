"""Checkpoints are data: read without running what a file may contain."""

import _codecs
import collections
import contextlib
import pickle
import re
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.fileio import load
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    get_deprecated_model_names,
    get_external_models,
    get_torchvision_models,
)

from .errors import ConfigError

URL = re.compile(r"(https?|file)://")
# What MMEngine's names of checkpoints begin with, where :func:`read_data` can read them.
NAMED = tuple(f"{name}://" for name in ("torchvision", "modelzoo", "open-mmlab", "openmmlab"))
READABLE = ["", "http://", "https://", *NAMED]


def read_checkpoint(source: str, what: str, trust: bool = False) -> dict:
    """Read a detector's checkpoint, on the CPU; see :func:`read_data`.

    Returns:
        dict: The content.

    Raises:
        ConfigError: If it is missing, unreadable, more than data, or holds no weights.
    """
    content = read_data(source, what, trust)
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(torch.is_tensor(v) for v in weights.values()):
        raise ConfigError(
            f"{what} {source!r} holds no weights: expected a dict of tensors, or one under "
            "'state_dict'"
        )
    return content


def read_data(
    source: str, what: str, trust: bool = False, map_location: str | torch.device | None = "cpu"
) -> Any:
    """Read what ``torch.save`` wrote.

    Only tensors, plain Python values and what MMEngine writes beside them (NumPy arrays, its
    history buffers) are let through; a pickle that asks for anything else is not run.

    Args:
        source: Path, or an ``http(s)`` or ``file`` URL. What is downloaded is kept in PyTorch's
            cache, and checked where its name ends in a hash, as in MMDetection's zoo.
        what: The option that named it, for messages.
        trust: Whether to run whatever the file contains.
        map_location: Where to put the tensors; see ``torch.load``.

    Raises:
        ConfigError: If it is missing, unreadable, or more than data.
    """
    is_url = URL.match(source) is not None
    if not is_url and not Path(source).expanduser().is_file():
        remedy = (
            "; another one is set by --cfg-options model.teacher.checkpoint=PATH"
            if what == "teacher.checkpoint"
            else ""
        )
        raise ConfigError(f"{what}: no file {source!r}: check the path{remedy}")
    options = dict(map_location=map_location, weights_only=not trust)
    try:
        with torch.serialization.safe_globals(_written_by_mmengine()):
            if is_url:
                hashed = re.search(r"-[0-9a-f]{8,}\.\w+$", source) is not None
                return torch.hub.load_state_dict_from_url(source, check_hash=hashed, **options)
            return torch.load(Path(source).expanduser(), **options)
    except Exception as error:  # zip, pickle, end-of-file and network errors have no common class
        raise ConfigError(_reason(error, source, what, is_url)) from error


def let_mmengine_read_data_only() -> None:
    """Have MMEngine read checkpoints by :func:`read_data` from now on in this process.

    That is what it resumes, ``load_from``, and ``init_cfg=dict(type='Pretrained')``, by path, URL
    and the short names ``torchvision://`` and ``open-mmlab://``. Its own loaders fall back to
    running a file that is more than data. What only these can read is refused.
    """

    def load_from_data(filename: str, map_location: str | None = None) -> Any:
        content = read_data(_address(filename), "checkpoint", map_location=map_location)
        if isinstance(content, dict) and isinstance(content.get("meta"), dict):
            content["meta"].pop("config", None)  # Runner.resume would run it: it is Python
        return content

    def load_from_elsewhere(filename: str, map_location: str | None = None) -> Any:
        raise ConfigError(
            f"checkpoint {filename!r} can only be read in a way that runs what it contains: copy "
            "it to a file, or say that you trust it: --trust"
        )

    CheckpointLoader.register_scheme(READABLE, load_from_data, force=True)
    elsewhere = ["mmcls://", "pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"]
    CheckpointLoader.register_scheme(elsewhere, load_from_elsewhere, force=True)


def let_mmengine_read_anything() -> None:
    """Have MMEngine run what checkpoints contain, from now on in this process.

    Its official distribution leaves that to PyTorch, whose default since 2.6 is to refuse.
    """

    def load(filename: str, map_location: str | None = None) -> Any:
        return read_data(_address(filename), "checkpoint", trust=True, map_location=map_location)

    CheckpointLoader.register_scheme(READABLE, load, force=True)


def _address(name: str) -> str:
    """The URL of weights that MMEngine knows by a short name; a path or URL as it is."""
    scheme, _, model = name.partition("://")
    if scheme in ("torchvision", "modelzoo"):
        known = load(Path(mmengine.__file__).parent / "hub" / "torchvision_0.12.json")
        with contextlib.suppress(ImportError):  # the usual names need no torchvision
            known = known if model in known else get_torchvision_models()
    elif scheme in ("open-mmlab", "openmmlab"):
        known = get_external_models()
        model = get_deprecated_model_names().get(model, model)
    else:
        return name
    if model not in known:
        raise ConfigError(f"checkpoint {name!r}: MMEngine knows no weights of that name")
    return known[model]


def _reason(error: Exception, source: str, what: str, is_url: bool) -> str:
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and forbidden:
        return (
            f"{what} {source!r} is more than data: reading it would call {forbidden[1]}. If you "
            "trust whoever made it, say so: trust=True beside the teacher's checkpoint, --trust "
            "for tools/train.py (what is resumed or initialises the student) and tools/test.py"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    remedy = "check the address and the network" if is_url else "is it truncated? Copy it again"
    return f"{what} {source!r} cannot be read ({type(error).__name__}: {reason}): {remedy}"


def _written_by_mmengine() -> list[Any]:
    """What MMEngine pickles into a checkpoint, besides tensors and plain values."""
    with contextlib.suppress(ImportError):
        from numpy._core import multiarray  # NumPy 2
    if "multiarray" not in locals():
        from numpy.core import multiarray
    allowed = [HistoryBuffer, collections.Counter, np.ndarray, np.dtype, _codecs.encode]
    allowed += [type(np.dtype(code)) for code in np.typecodes["All"] if code not in "SUVO"]
    for package in ("numpy.core", "numpy._core"):  # by either name, whichever NumPy wrote it
        for function in (multiarray.scalar, multiarray._reconstruct):
            allowed.append((function, f"{package}.multiarray.{function.__name__}"))
    return [*allowed, (_history_method, "builtins.getattr")]


def _history_method(owner: type, name: str) -> Any:
    """The only ``getattr`` that is let through: a method of MMEngine's history buffer."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return getattr(owner, name)
