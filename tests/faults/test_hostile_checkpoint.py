"""A file that runs code when it is unpickled, by each of the ways into tools/train.py."""

import os

import pytest
import torch
from conftest import build, dino_config


class Trap:
    """Unpickled, it creates a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def hostile(tmp_path):
    """Path of a student's checkpoint that springs a trap, and the folder by which it shows."""
    content = dict(state_dict=build(dino_config()).state_dict(), meta=Trap(tmp_path / "sprung"))
    torch.save(content, tmp_path / "hostile.pth")
    return tmp_path / "hostile.pth", tmp_path / "sprung"


@pytest.fixture
def ways_in(hostile, tmp_path):
    """Config options and arguments by which the file gets into a training run."""
    path, work = str(hostile[0]), tmp_path / "work"

    def last_checkpoint():
        work.mkdir()
        (work / "last_checkpoint").write_text(path)

    pretrained = dict(_delete_=True, type="Pretrained", checkpoint=path)
    return {
        "--resume PATH": lambda: ({}, ["--resume", path]),
        "--resume": lambda: ({}, last_checkpoint() or ["--resume"]),
        "load_from": lambda: (dict(load_from=path), []),
        "init_cfg of the backbone": lambda: ({"model.backbone.init_cfg": pretrained}, []),
        "a URL": lambda: (dict(load_from=f"file://{path}"), []),
    }


WAYS = ["--resume PATH", "--resume", "load_from", "init_cfg of the backbone", "a URL"]


@pytest.mark.parametrize("way", WAYS)
def test_is_refused(way, ways_in, hostile, write_config, run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    options, arguments = ways_in[way]()
    code, line, _ = run("train.py", write_config(distilled=False, **options), *arguments)
    assert code == 2
    assert line.startswith("error: checkpoint ") and str(hostile[0]) in line
    assert "is more than data" in line and "mkdir" in line and "--trust" in line
    assert not hostile[1].exists()


def test_is_run_if_trusted(hostile, write_config, run):
    """So the trap of the other tests works."""
    config = write_config(distilled=False, load_from=str(hostile[0]))
    assert run("train.py", config, "--trust")[0] == 0
    assert hostile[1].exists()


def test_python_in_plain_text_is_not_run(write_config, run, tmp_path):
    """MMEngine takes meta.config of what it resumes for a config file, and runs it."""
    config = write_config(distilled=False)
    assert run("train.py", config)[0] == 0
    content = torch.load(tmp_path / "work/epoch_1.pth", weights_only=False)
    # MMEngine replaces what a config imports by a statement.
    content["meta"]["config"] = f"__import__('os').mkdir({str(tmp_path / 'sprung')!r})"
    torch.save(content, tmp_path / "hostile.pth")
    arguments = ["--resume", tmp_path / "hostile.pth"]
    assert run("train.py", config, *arguments)[0] == 0
    assert not (tmp_path / "sprung").exists()
    assert run("train.py", config, "--trust", *arguments)[0] == 0
    assert (tmp_path / "sprung").exists()
