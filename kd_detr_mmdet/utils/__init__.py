"""Small helpers with no better home."""

from .errors import ConfigError, NonFiniteLossError

__all__ = ["ConfigError", "NonFiniteLossError"]
