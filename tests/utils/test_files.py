"""Files appear whole or not at all."""

import os
import resource
import signal

import pytest

from kd_detr_mmdet.utils.errors import SaveError
from kd_detr_mmdet.utils.files import remove_leftovers, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "it.pth"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert names(path.parent) == ["it.pth"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_before_the_file_has_its_name(tmp_path, moment):
    path = tmp_path / "it.pth"
    write_atomically(path, b"first")
    if (child := os.fork()) == 0:
        setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write_atomically(path, b"second")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == [".it.pth.partial", "it.pth"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["it.pth"]


def test_a_file_that_cannot_grow(tmp_path):
    """By a limit on the size of files, which every user may set; the system's error is alike."""
    path = tmp_path / "it.pth"
    write_atomically(path, b"first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(SaveError) as error:
            write_atomically(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = str(error.value)
    assert "\n" not in told
    for part in (str(path), "1.0 MB", "File too large", "MB free", "--resume"):
        assert part in told
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["it.pth"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot be saved"):
        write_atomically(tmp_path / "file" / "it.pth", b"")
