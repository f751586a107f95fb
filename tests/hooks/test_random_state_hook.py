"""RandomStateHook: random state in checkpoints, and untouched by validation."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from kd_detr_mmdet.hooks import RandomStateHook
from kd_detr_mmdet.hooks.random_state_hook import get_random_state, set_random_state


@pytest.fixture(autouse=True)
def state_of_other_tests():
    before = get_random_state()
    yield
    set_random_state(before)


def draw():
    """One number of every generator that training draws from, and a cached NumPy normal."""
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()


def runner(resume=True, rank=0, iteration=8, persistent=False, world_size=1, loop=None):
    """What the hook sees of a Runner after two epochs of four iterations."""

    class Loader(list):
        persistent_workers = persistent

    return SimpleNamespace(
        _resume=resume,
        rank=rank,
        world_size=world_size,
        epoch=2,
        iter=iteration,
        train_dataloader=Loader([None] * 4),
        train_loop=loop or EpochBasedTrainLoop.__new__(EpochBasedTrainLoop),
    )


def checkpoint():
    saved = {}
    RandomStateHook().before_save_checkpoint(runner(), saved)
    return saved


def test_state_makes_the_round_trip():
    np.random.randn()  # leaves a second normal in NumPy's cache
    state = get_random_state()
    drawn = draw(), draw()
    set_random_state(state)
    assert (draw(), draw()) == drawn
    assert (draw(), draw()) != drawn


def test_resumed_run_draws_on():
    saved = checkpoint()
    drawn = draw()
    hook = RandomStateHook()
    hook.after_load_checkpoint(runner(), saved)
    draw()  # between loading and training the data loaders are built
    hook.before_train_epoch(runner())
    assert draw() == drawn


def test_only_the_first_epoch_is_restored():
    saved = checkpoint()
    hook = RandomStateHook()
    hook.after_load_checkpoint(runner(), saved)
    hook.before_train_epoch(runner())
    first = draw()
    hook.before_train_epoch(runner())
    assert draw() != first


@pytest.mark.parametrize(
    "loaded_by, trained_by",
    [
        (runner(resume=False), runner(resume=False)),  # load_from: weights for a new run
        (runner(), runner(rank=1, world_size=2)),  # only rank 0's state was stored
    ],
)
def test_who_keeps_its_own_state(loaded_by, trained_by):
    saved = checkpoint()
    drawn = draw()
    hook = RandomStateHook()
    hook.after_load_checkpoint(loaded_by, saved)
    state = get_random_state()
    hook.before_train_epoch(trained_by)
    assert draw() != drawn
    set_random_state(state)
    expected = draw()
    set_random_state(state)
    hook.before_train_epoch(trained_by)
    assert draw() == expected


def test_checkpoint_without_a_state_resumes():
    hook = RandomStateHook()
    hook.after_load_checkpoint(runner(), {})
    state = get_random_state()
    expected = draw()
    set_random_state(state)
    hook.before_train_epoch(runner())
    assert draw() == expected


def test_validation_leaves_the_state_untouched():
    hook = RandomStateHook()
    hook.before_val(runner())
    drawn = draw()
    draw()
    hook.after_val(runner())
    assert draw() == drawn


def test_state_saved_within_validation_is_that_before_it():
    """As with the best checkpoint, and the last one that is then saved once more."""
    hook, saved = RandomStateHook(), {}
    hook.before_val(runner())
    drawn = draw()
    hook.before_save_checkpoint(runner(), saved)
    hook.after_val(runner())
    draw()
    hook.after_load_checkpoint(runner(), saved)
    hook.before_train_epoch(runner())
    assert draw() == drawn


def test_state_saved_between_resume_and_training_is_the_one_to_restore():
    """As with the best checkpoint, where a validation is made up for first."""
    saved, best = checkpoint(), {}
    drawn = draw()
    hook = RandomStateHook()
    hook.after_load_checkpoint(runner(), saved)
    hook.before_val(runner())
    hook.before_save_checkpoint(runner(), best)
    hook.after_val(runner())
    hook.after_load_checkpoint(runner(), best)
    hook.before_train_epoch(runner())
    assert draw() == drawn


def test_every_rank_gets_its_own(monkeypatch):
    """At the end of an epoch all states are gathered; saving is left to rank 0."""
    states = []
    for _ in range(2):
        states.append(get_random_state())
        draw()
    name = "kd_detr_mmdet.hooks.random_state_hook.all_gather_object"
    monkeypatch.setattr(name, lambda state: states)
    hook, saved = RandomStateHook(), {}
    hook.after_train_epoch(runner())
    hook.before_save_checkpoint(runner(), saved)
    draws = []
    for rank in range(2):
        set_random_state(states[rank])
        draws.append(draw())
    for rank in range(2):
        hook.after_load_checkpoint(runner(), saved)
        hook.before_train_epoch(runner(rank=rank, world_size=2))
        assert draw() == draws[rank]
    draw()
    expected = get_random_state()
    hook.before_save_checkpoint(runner(), saved)  # within the next epoch
    assert saved["random_state"][0]["python"] == expected["python"]


def test_older_checkpoints_hold_one_state():
    drawn_from = checkpoint()["random_state"][0]
    drawn = draw()
    hook = RandomStateHook()
    hook.after_load_checkpoint(runner(), dict(random_state=drawn_from))
    hook.before_train_epoch(runner())
    assert draw() == drawn


@pytest.mark.parametrize(
    "resumed, told",
    [
        (runner(), None),
        (runner(iteration=6), "iteration 6, within an epoch of 4"),
        (runner(persistent=True), "persistent_workers"),
        (runner(world_size=2), "number of processes"),
        (runner(loop=SimpleNamespace()), "not epoch-based"),
    ],
)
def test_what_cannot_be_equal_is_said(monkeypatch, resumed, told):
    lines = []
    name = "kd_detr_mmdet.hooks.random_state_hook.print_log"
    monkeypatch.setattr(name, lambda line, **_: lines.append(line))
    hook = RandomStateHook()
    hook.after_load_checkpoint(resumed, checkpoint())
    hook.before_train_epoch(resumed)
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


def test_stored_state_is_safe_to_load(tmp_path):
    """Since PyTorch 2.6 a checkpoint is read without running code of its author."""
    saved = checkpoint()
    drawn = draw()
    torch.save(saved, tmp_path / "state.pth")
    loaded = torch.load(tmp_path / "state.pth", weights_only=True)
    hook = RandomStateHook()
    hook.after_load_checkpoint(runner(), loaded)
    hook.before_train_epoch(runner())
    assert draw() == drawn


def test_a_config_can_name_the_hook():
    assert isinstance(HOOKS.build(dict(type="RandomStateHook")), RandomStateHook)
