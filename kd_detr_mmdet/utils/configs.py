"""From whatever a user may name a detector by, to the config of its model."""

import copy
import difflib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.runner import Runner

from .errors import ConfigError

DetectorSource = dict | str | Path
# What MMEngine's Runner takes from a config beside its own arguments.
READ_BY_RUNNER = (
    "activation_checkpointing",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "sync_bn",
)


def is_kd_model(model: dict) -> bool:
    """Whether a model config is that of a distillation (and not of a detector)."""
    return model.get("type") == "KDDETR"


def check_part_names(cfg: Config) -> None:
    """Refuse options that look for parts of a detector in the distillation.

    Raises:
        ConfigError: With what to do instead.
    """
    constructor = (cfg.get("optim_wrapper") or {}).get("constructor") or ""
    if str(constructor).endswith("LearningRateDecayOptimizerConstructor"):
        raise ConfigError(
            f"optim_wrapper.constructor={constructor!r} goes by the names of a detector's own "
            "parts, and in a distillation they begin with 'student.': leave it out, and set "
            "learning rates by paramwise_cfg.custom_keys"
        )
    for option in ("activation_checkpointing", "efficient_conv_bn_eval"):
        names = cfg.get(option) or []
        for name in [names] if isinstance(names, str) else names:
            if not str(name).startswith("student."):
                raise ConfigError(
                    f"{option} names {name!r}, and in a distillation the detector's parts begin "
                    f"with 'student.': {'student.' + str(name)!r}"
                )


def check_names(cfg: Config, options: Iterable[str] = ()) -> None:
    """Refuse settings that nobody reads, for what looks like a slip of the pen.

    Args:
        cfg: A whole config, as its file has it. It may name variables of its own, but none that is
            nearly a setting of MMEngine's.
        options: Dotted keys that are to be set from outside. Their first part must be a setting of
            MMEngine's: a variable of the config has done its work when they are set.

    Raises:
        ConfigError: With the name that was probably meant, or the settings to set.
    """
    known = [*inspect.signature(Runner.__init__).parameters, *READ_BY_RUNNER]
    for name in cfg:
        if name not in known and (meant := difflib.get_close_matches(name, known, 1, 0.9)):
            raise ConfigError(
                f"config {cfg.filename!r} sets {name!r}, which nobody reads: {meant[0]!r} is "
                "meant? Give a variable of your own a name that is less alike"
            )
    for option in options:
        name = option.split(".")[0]
        if name in known:
            continue
        if name not in cfg:
            meant = difflib.get_close_matches(name, {*known, *cfg}, 1)
            hint = f": {meant[0]!r} is meant?" if meant else ""
            raise ConfigError(
                f"--cfg-options sets {option!r}, but the config has no {name!r}{hint}"
            )
        places = [place for place in _places(cfg.to_dict(), name) if place.split(".")[0] in known]
        raise ConfigError(
            f"--cfg-options sets {option!r}, a variable of the config file, which has put it "
            f"where it is used before options count: set {' and '.join(places) or 'that'} instead"
        )


def _places(settings: object, name: str, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a config that end in a name."""
    if isinstance(settings, dict):
        settings = settings.items()
    elif isinstance(settings, list):
        settings = enumerate(settings)
    else:
        return
    for key, value in settings:
        if key == name:
            yield f"{prefix}{key}"
        yield from _places(value, name, f"{prefix}{key}.")


def names_config(source: object) -> bool:
    """Whether this is no config, but a dict that holds one under ``config``."""
    return isinstance(source, dict) and "config" in source and not {"type", "model"} & set(source)


def model_config(source: DetectorSource, what: str = "model") -> ConfigDict:
    """Get a detector's model config.

    Args:
        source: A model dict (with ``type``), a whole config (dict or Config with ``model``), the
            path of a config file, or the name of a package's config such as
            ``'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'``. For the config of a distillation it
            is the student's model. Any of these may stand under ``config``, beside a checkpoint.
        what: Whose config this is, for messages.

    Returns:
        ConfigDict: A copy that the caller may change.

    Raises:
        ConfigError: If there is no such config, or it holds no model.
    """
    if names_config(source):
        source = source["config"]
    if isinstance(source, (str, Path)):
        config = _read(str(source), what)
    elif isinstance(source, (dict, Config)):
        config = source
    else:
        raise ConfigError(
            f"{what}: expected a model dict, a config, a config file's path or an 'mmdet::' name, "
            f"got {type(source).__name__}"
        )
    model = config if "type" in config else config.get("model")
    if not isinstance(model, dict) or "type" not in model:
        raise ConfigError(f"{what}: the config holds no 'model' with a 'type'")
    model = ConfigDict(copy.deepcopy(model))
    if "type" not in config and config.get("data_preprocessor"):  # as MMEngine's Runner does
        model.setdefault(
            "data_preprocessor", ConfigDict(copy.deepcopy(config["data_preprocessor"]))
        )
    if is_kd_model(model):
        if "student" not in model:
            raise ConfigError(f"{what}: the distillation's config has no 'student'")
        student = model_config(model.student, what)
        student.setdefault("data_preprocessor", model.get("data_preprocessor"))
        return student
    return model


def read_file(path: str | Path, what: str) -> Config:
    """Read a file of MMEngine's config language.

    Args:
        path: Of the file.
        what: What messages call it.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return Config.fromfile(path)
    except Exception as error:  # it is a program: it may fail in any way
        raise ConfigError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


def _read(source: str, what: str) -> Config:
    """Read a config by name ('package::path') or by path."""
    try:
        return get_config(source) if "::" in source else Config.fromfile(source)
    except FileNotFoundError as error:
        if Path(source).is_file():  # it is there, but not what it inherits
            raise ConfigError(f"{what}: the config {source!r} cannot be read: {error}") from error
        hint = "" if source.endswith(".py") else " (a config's name ends in .py)"
        raise ConfigError(f"{what}: no config file {source!r}{hint}: check its path") from error
    except Exception as error:  # a config is a program: it may fail in any way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ConfigError(
            f"{what}: the config {source!r} cannot be read: {type(error).__name__}: {reason}"
        ) from error
