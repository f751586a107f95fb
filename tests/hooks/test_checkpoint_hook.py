"""AtomicCheckpointHook: nothing is removed before its successor is there."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.runner import save_checkpoint

from kd_detr_mmdet.hooks import AtomicCheckpointHook
from kd_detr_mmdet.utils.errors import SaveError


class Runner:
    """What CheckpointHook sees of a Runner; it tells which files were there while it saved."""

    def __init__(self, work_dir):
        self.work_dir, self.epoch, self.iter = str(work_dir), 0, 0
        self.message_hub = MessageHub(f"of {work_dir}")
        self.logger = MMLogger.get_current_instance()
        self.there, self.full = [], False

    def save_checkpoint(self, out_dir, filename, *args, meta, backend_args, **kwargs):
        if self.full:
            raise SaveError("disk full")
        self.there.append(files(out_dir))
        save_checkpoint(dict(meta=meta), f"{out_dir}/{filename}", backend_args=backend_args)


def files(folder):
    return {name for name in os.listdir(folder) if name.endswith(".pth")}


def hook_of(runner, kept=1, **options):
    hook = AtomicCheckpointHook(interval=1, max_keep_ckpts=kept, **options)
    hook.before_train(runner)
    return hook


def epochs(hook, runner, number, scores=()):
    for epoch in range(number):
        hook.after_train_epoch(runner)
        runner.epoch += 1
        if scores:
            hook.after_val_epoch(runner, dict(acc=scores[epoch]))


def last(runner):
    with open(f"{runner.work_dir}/last_checkpoint") as file:
        return file.read()


def test_the_last_checkpoint_goes_when_the_next_is_there(tmp_path):
    runner = Runner(tmp_path)
    epochs(hook_of(runner), runner, 3)
    assert runner.there == [set(), {"epoch_1.pth"}, {"epoch_2.pth"}]
    assert files(tmp_path) == {"epoch_3.pth"}
    assert last(runner) == str(tmp_path / "epoch_3.pth")
    assert runner.message_hub.get_info("keep_ckpt_ids") == [3]


def test_of_several_the_oldest_goes(tmp_path):
    runner = Runner(tmp_path)
    epochs(hook_of(runner, kept=2), runner, 4)
    assert files(tmp_path) == {"epoch_3.pth", "epoch_4.pth"}
    assert runner.message_hub.get_info("keep_ckpt_ids") == [3, 4]


def test_so_does_the_best(tmp_path):
    runner = Runner(tmp_path)
    epochs(hook_of(runner, save_best="acc"), runner, 3, scores=(0.5, 0.7, 0.6))
    # While the second best was saved, the first was still there.
    assert {"best_acc_epoch_1.pth", "epoch_2.pth"} in runner.there
    assert files(tmp_path) == {"epoch_3.pth", "best_acc_epoch_2.pth"}
    assert runner.message_hub.get_info("best_ckpt") == str(tmp_path / "best_acc_epoch_2.pth")


@pytest.mark.parametrize("full_from", [1, 1.5])
def test_nothing_goes_if_saving_fails(tmp_path, full_from):
    runner = Runner(tmp_path)
    hook = hook_of(runner, save_best="acc")
    epochs(hook, runner, 1, scores=(0.5,))
    if full_from == 1.5:  # between the checkpoint of the second epoch and the best one
        hook.after_train_epoch(runner)
        runner.epoch += 1
    before, runner.full = files(tmp_path), True
    with pytest.raises(SaveError):
        if full_from == 1.5:
            hook.after_val_epoch(runner, dict(acc=0.7))
        else:
            hook.after_train_epoch(runner)
    assert files(tmp_path) == before
    assert last(runner).rpartition("/")[2] in before


def test_leftovers_go_at_the_start(tmp_path):
    for folder in (tmp_path / "run", tmp_path / "elsewhere" / "run"):
        folder.mkdir(parents=True)
        (folder / ".epoch_2.pth.partial").write_bytes(b"half")
        (folder / "epoch_1.pth").write_bytes(b"whole")
    hook_of(Runner(tmp_path / "run"), out_dir=str(tmp_path / "elsewhere"))
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"epoch_1.pth"}


def test_it_takes_the_place_of_mmengines():
    ours = HOOKS.build(dict(type="AtomicCheckpointHook", interval=2))
    theirs, other = CheckpointHook(interval=3, save_best="acc"), object()
    runner = SimpleNamespace(hooks=[other, theirs, ours])
    AtomicCheckpointHook.take_over(runner)
    assert runner.hooks[0] is other and runner.hooks[2] is ours
    assert isinstance(runner.hooks[1], AtomicCheckpointHook)
    assert vars(runner.hooks[1]) == vars(theirs)


def test_another_backend_is_left_alone(tmp_path):
    hook = hook_of(Runner(tmp_path), backend_args=dict(backend="local"))
    assert hook.backend_args == dict(backend="local")


def test_a_checkpoint_is_what_torch_reads(tmp_path):
    runner = Runner(tmp_path)
    epochs(hook_of(runner), runner, 1)
    assert torch.load(tmp_path / "epoch_1.pth")["meta"] == dict(epoch=1, iter=0)
