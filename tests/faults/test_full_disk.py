"""No room for a checkpoint: the run ends and says so, what was saved before stays."""

import resource
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from kd_detr_mmdet.utils.checkpoints import read_checkpoint

# A file system of its own for one process: with this the system's superuser is not needed.
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture
def one_epoch(write_config, run, tmp_path):
    """A run of one epoch that keeps one checkpoint: its config and its folder."""
    config = write_config()
    assert run("train.py", config)[0] == 0
    return config, tmp_path / "work"


def assert_told(line, *told):
    for part in ("error: ", "epoch_2.pth", " MB) cannot be saved", "MB free", "--resume", *told):
        assert part in line


def assert_intact(work):
    """The first epoch's checkpoint is there and whole, and no part of the second's."""
    assert [path.name for path in work.glob("*.pth")] == ["epoch_1.pth"]
    assert not list(work.glob(".*.partial"))
    read_checkpoint((work / "last_checkpoint").read_text(), "last_checkpoint")


MORE = ["--resume", "--cfg-options", "train_cfg.max_epochs=2"]


def test_a_limit_on_the_size_of_files(one_epoch, run):
    """What every user may set, and a quota does; the system's error comes at the same place."""
    config, work = one_epoch
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (work / "epoch_1.pth").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 4, limits[1]))
    try:
        code, line, _ = run("train.py", config, *MORE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert_told(line, "File too large")
    assert_intact(work)
    assert run("train.py", config, *MORE)[0] == 0
    assert (work / "epoch_2.pth").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0,
    reason="this system lets no process have a file system of its own (unshare)",
)
def test_a_full_file_system(one_epoch, tmp_path):
    """A disk in memory, with room for the first epoch's checkpoint and half of another."""
    config, work = one_epoch
    used = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    room = used + (work / "epoch_1.pth").stat().st_size // 2
    script = """
        cp -a "$1" "$1.before"
        mount -t tmpfs -o size="$2" tmpfs "$1"
        cp -a "$1.before/." "$1"
        shift 2
        "$@"
        code=$?
        cp -a "$WORK/." "$WORK.after"  # the file system goes with this process
        exit $code
    """
    tool = [sys.executable, str(ROOT / "tools/train.py"), config, *MORE]
    done = subprocess.run(
        [*UNSHARE, "env", f"WORK={work}", "sh", "-c", script, "sh", str(work), str(room), *tool],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert_told(done.stderr.strip().splitlines()[-1], "No space left on device")
    shutil.rmtree(work)
    (tmp_path / "work.after").rename(work)
    assert_intact(work)
