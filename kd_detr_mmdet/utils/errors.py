"""Mistakes that a user can mend: told in one line (what, where, what to do)."""

from collections.abc import Sequence

# What PyTorch says of images with fewer places than a two-stage DETR has queries, and of one place
# for batch normalisation.
TOO_SMALL = ("selected index k out of range", "Expected more than 1 value per channel")
MEND_TOO_SMALL = (
    "the images are too small: a model needs as many places in its feature maps as it has queries, "
    "and batch normalisation more than one; take larger images"
)


class ConfigError(ValueError):
    """A configuration, checkpoint or data set that cannot be used as it is."""


class NonFiniteLossError(FloatingPointError):
    """A loss or a gradient became NaN or infinite during training.

    Args:
        what: What did, when, and on which images.
    """

    remedy = (
        "the weights have not changed. Look at these images' boxes, lower the learning rate, or "
        "train without --amp"
    )

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: {self.remedy}")
        self.what = what


class SaveError(OSError):
    """A file could not be saved, or not all of it."""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{name} must be one of {listed}, got {value!r}")


def check_weight(name: str, value: object) -> None:
    """Raise :class:`ConfigError` unless ``value`` is a finite number of at least 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < float("inf"):
        raise ConfigError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_ap(name: str, value: object) -> None:
    """Raise :class:`ConfigError` unless ``value`` is an AP in percent, above 1 and at most 100."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 1 < value <= 100:
        raise ConfigError(
            f"{name} must be COCO's AP in percent, above 1 (50.1, not 0.501) and at most 100, got "
            f"{value!r}"
        )


def shorten(items: Sequence[str], most: int = 8) -> str:
    """The first items of a list for a message, and how many more there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f", and {more} more" if more > 0 else "")


def brief(names: Sequence[str]) -> str:
    """Names for a message: the first six, and how many there are."""
    shown = ", ".join(map(str, names[:6]))
    return f"({shown}{', ...' if len(names) > 6 else ''}; {len(names)} in all)"
