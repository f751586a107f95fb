"""Files that appear whole or not at all, whenever the process or the machine dies."""

import os
import shutil
from pathlib import Path

from .errors import SaveError

SUFFIX = ".partial"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file under another name, and give it its own once all of it is on the disk.

    Args:
        path: The file; one that is there is replaced. Its folder is made if it is missing.
        content: All of it.

    Raises:
        SaveError: If there is no room, or it cannot be written; an earlier file stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power failure may leave the new name without content
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = f"{path} ({_megabytes(len(content))}) cannot be saved: {error.strerror}"
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
            reason += f" ({_megabytes(shutil.disk_usage(path.parent).free)} free)"
        raise SaveError(
            f"{reason}. What was saved before is as it was: make room and start again (training: "
            "with --resume)"
        ) from error


def remove_leftovers(folder: str | Path) -> None:
    """Remove what :func:`write_atomically` left unfinished in a folder when its process died."""
    for partial in Path(folder).glob(f".*{SUFFIX}"):
        partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a new name durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # network file systems may not know how: the file itself is safe
        pass
    finally:
        os.close(descriptor)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
