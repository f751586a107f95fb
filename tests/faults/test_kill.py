"""Training processes that are killed with SIGKILL, as by `kill -9` or the kernel's OOM killer."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from kd_detr_mmdet.utils.checkpoints import read_checkpoint

LIMIT_S = 300  # a run that does not come to its fault by then will not


@pytest.fixture
def config(write_config):
    """Two epochs of four steps, distilled, with all that has a state of its own."""
    return write_config(
        **{
            "custom_hooks": [dict(type="EMAHook", momentum=0.1)],
            "default_hooks.checkpoint.save_best": "coco/bbox_mAP",
            "model.student.encoder.layer_cfg.ffn_cfg.ffn_drop": 0.1,
            "train_dataloader.batch_size": 4,
            "train_cfg.max_epochs": 2,
        }
    )


@pytest.fixture
def start():
    """Starts tools/train.py in a process of its own; whatever is left at the end is killed."""
    started = []

    def start(*arguments):
        started.append(
            subprocess.Popen(
                [sys.executable, "-u", str(ROOT / "tools/train.py"), *map(str, arguments)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(process, told):
    """Read a process's output until it has told something."""
    deadline, lines = time.monotonic() + LIMIT_S, []
    for line in process.stdout:
        lines.append(line)
        if told in line:
            return
        assert time.monotonic() < deadline, "".join(lines)
    raise AssertionError(f"ended without telling {told!r}:\n{''.join(lines)}")


def kill(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def saved(work):
    """Content of each checkpoint by its file's name: each can be read, and they are all there is.

    ``last_checkpoint`` names one of them.
    """
    found = {path.name: read_checkpoint(str(path), path.name) for path in work.glob("*.pth")}
    last = (work / "last_checkpoint").read_text()
    assert os.path.basename(last) in found
    assert os.path.samefile(os.path.dirname(last), work)
    return found


def differences(ours, theirs, where=""):
    """Paths at which two nested values are not bit-equal."""
    if torch.is_tensor(ours):
        return [] if torch.equal(ours, theirs) else [where]
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        return [d for k in ours for d in differences(ours[k], theirs[k], f"{where}.{k}")]
    if isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        return [d for a, b in zip(ours, theirs) for d in differences(a, b, where)]
    return [] if ours == theirs else [where]


def test_killed_twice_and_resumed_equals_the_uninterrupted_run(config, run, start, tmp_path):
    """Killed within the second epoch, and again while that epoch's checkpoint is written."""
    assert run("train.py", config, "--work-dir", tmp_path / "whole")[0] == 0
    whole = saved(tmp_path / "whole")

    work = tmp_path / "killed"
    process = start(config, "--work-dir", work)
    wait_for(process, "Epoch(train) [2][1/4]")
    kill(process)
    first = saved(work)["epoch_1.pth"]

    process = start(config, "--work-dir", work, "--resume")
    wait_for(process, "Epoch(train) [2][1/4]")
    # A pipe is a file that stays half-written for as long as the test likes.
    unfinished = work / ".epoch_2.pth.partial"
    os.mkfifo(unfinished)
    with open(unfinished, "rb") as pipe:
        half = pipe.read(100_000)
        kill(process)
    unfinished.unlink()
    unfinished.write_bytes(half)
    assert "epoch_1.pth" in saved(work)

    code, _, out = run("train.py", config, "--work-dir", work, "--resume")
    assert code == 0
    assert "not as if it had never been interrupted" not in out
    assert not unfinished.exists()
    resumed = saved(work)
    assert [name for name in resumed if "best" not in name] == ["epoch_2.pth"]
    resumed, whole = resumed["epoch_2.pth"], whole["epoch_2.pth"]
    for part in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers", "random_state"):
        assert not differences(whole[part], resumed[part])[:5], part
    # Had the second epoch changed nothing, that would be no wonder.
    for part in ("state_dict", "ema_state_dict", "random_state"):
        assert differences(first[part], resumed[part]), part
