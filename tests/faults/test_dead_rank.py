"""One of two processes that train together ends: so does the other, soon, and says why."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT

LIMIT_S = 120  # below the timeout of the process group by far


@pytest.fixture
def config(write_config):
    """Training that would go on for long."""
    return write_config(
        **{
            "train_dataloader.batch_size": 4,
            "train_cfg.max_epochs": 1_000,
            "train_cfg.val_interval": 1_000,
            "default_hooks.checkpoint.interval": 1_000,
        }
    )


@pytest.fixture
def start_pair():
    """Starts both processes of a run, as a launcher would that does not watch over them."""
    started = []

    def start(*arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        env = dict(os.environ, OMP_NUM_THREADS="1", WORLD_SIZE="2")
        env.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        tool = [sys.executable, "-u", str(ROOT / "tools/train.py"), "--launcher", "pytorch"]
        for rank in range(2):
            started.append(
                subprocess.Popen(
                    [*tool, *map(str, arguments)],
                    env=dict(env, RANK=str(rank), LOCAL_RANK=str(rank)),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_training(process):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(r"Epoch\(train\) +\[2\]", line):
            return
    raise AssertionError("".join(lines) + process.stderr.read())


def assert_ended(process, *told):
    """In bounded time, with one line and exit code 2."""
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2, err[-2000:]
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err
    for part in told:
        assert part in line


PEER = ("another process of this run has ended", "--resume")


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_rank(config, start_pair, dead):
    """Rank 0 is also the one at which the processes meet."""
    ranks = start_pair(config)
    wait_for_training(ranks[0])
    ranks[dead].send_signal(signal.SIGKILL)
    assert_ended(ranks[1 - dead], *PEER)


@pytest.mark.slow
def test_a_rank_that_hangs(config, start_pair):
    """Its connections stay, so only the timeout ends the other."""
    ranks = start_pair(config, "--cfg-options", "env_cfg.dist_cfg.timeout=10")
    wait_for_training(ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    assert_ended(ranks[0], *PEER)


@pytest.mark.slow
def test_a_rank_that_cannot_save(config, start_pair, tmp_path):
    """Rank 0 fails where the other one waits for it."""
    ranks = start_pair(config, "--cfg-options", "default_hooks.checkpoint.interval=3")
    wait_for_training(ranks[0])
    (tmp_path / "work" / "epoch_3.pth").mkdir()  # in the way of the file
    assert_ended(ranks[0], "epoch_3.pth", "cannot be saved")
    assert_ended(ranks[1], *PEER)


@pytest.mark.slow
def test_a_killed_rank_under_torchrun(config):
    """torchrun ends the other process, too, and with an error."""
    tool = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    tool += [str(ROOT / "tools/train.py"), config, "--launcher", "pytorch"]
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    # Its error output goes the same way: a pipe that nobody empties would stop it.
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(tool, env=env, **pipes) as launcher:
        try:
            wait_for_training(launcher)
            task = f"/proc/{launcher.pid}/task/{launcher.pid}/children"
            with open(task) as file:
                ranks = [int(pid) for pid in file.read().split()]
            assert len(ranks) == 2
            os.kill(ranks[1], signal.SIGKILL)
            out, _ = launcher.communicate(timeout=LIMIT_S)
        finally:
            launcher.terminate()
    assert launcher.returncode != 0
    assert "Signal 9 (SIGKILL)" in out
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ranks)
