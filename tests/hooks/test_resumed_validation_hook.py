"""ResumedValidationHook: what was saved and not evaluated is evaluated when it is resumed."""

import json
import logging
from types import SimpleNamespace

import pytest
from mmdet.registry import HOOKS
from mmengine.hooks import LoggerHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from kd_detr_mmdet.hooks import ResumedValidationHook

TRAINED = [dict(loss=1, time=0.5, iter=4 * n) for n in (1, 2, 3)]
EVALUATED = [{"coco/bbox_mAP": 0.1, "step": n} for n in (1, 2)]


def runner(
    folder, epoch=2, iteration=None, loop=EpochBasedTrainLoop, resume=True, by_epoch=True, **options
):
    """What the hook sees of a Runner with epochs of four iterations; counts its validations."""
    made = loop.__new__(loop)
    options = {"_max_epochs": 3, "_max_iters": 12, "val_begin": 1, "val_interval": 1} | options
    vars(made).update(options, _epoch=epoch, _iter=4 * epoch if iteration is None else iteration)
    made.dataloader = [None] * 4
    made.dynamic_milestones, made.dynamic_intervals = [0], [made.val_interval]
    validations = []
    return SimpleNamespace(
        _resume=resume,
        work_dir=str(folder),
        train_loop=made,
        hooks=[LoggerHook(log_metric_by_epoch=by_epoch)],
        epoch=made.epoch,
        iter=made.iter,
        val_loop=SimpleNamespace(run=lambda: validations.append(made.iter)),
        logger=logging.getLogger(),
        validations=validations,
    )


def log(folder, *rows, start="20260101_000000"):
    path = folder / start / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def validated(runner):
    ResumedValidationHook().before_train(runner)
    return bool(runner.validations)


@pytest.mark.parametrize("begun", [False, True])
def test_an_evaluation_that_was_cut_is_made_up_for(tmp_path, begun):
    """Whether the epoch after it was begun elsewhere, or not."""
    log(tmp_path, TRAINED[0], EVALUATED[0], TRAINED[1], *TRAINED[2:] * begun)
    assert validated(runner(tmp_path))


def test_one_that_is_logged_is_not_made_again(tmp_path):
    log(tmp_path, TRAINED[0], EVALUATED[0], TRAINED[1], EVALUATED[1], TRAINED[2])
    assert not validated(runner(tmp_path))
    assert not validated(runner(tmp_path, epoch=1))
    # By another start; and of one of which nothing is known, as in another work directory.
    log(tmp_path, EVALUATED[1], start="20260102_000000")
    assert not validated(runner(tmp_path))
    assert validated(runner(tmp_path / "none"))


def test_what_was_logged_beyond_the_checkpoint_does_not_count(tmp_path):
    log(tmp_path, TRAINED[0], TRAINED[1], TRAINED[2], EVALUATED[1])
    assert validated(runner(tmp_path))


@pytest.mark.parametrize("loop", [EpochBasedTrainLoop, IterBasedTrainLoop])
@pytest.mark.parametrize("by_epoch", [True, False])
def test_evaluations_are_known_however_they_are_logged(tmp_path, loop, by_epoch):
    """MMEngine writes the epoch or the iteration; of training without epochs the epoch is 0."""
    epoch = 1 if loop is EpochBasedTrainLoop else 0
    rows = [TRAINED[0], {"coco/bbox_mAP": 0.1, "step": epoch if by_epoch else 4}, TRAINED[1]]
    log(tmp_path, *rows)
    at = dict(loop=loop, by_epoch=by_epoch, epoch=epoch)
    assert not validated(runner(tmp_path, iteration=4, **at))
    assert validated(runner(tmp_path, iteration=8, **{**at, "epoch": 2 * epoch}))


@pytest.mark.parametrize(
    ("given", "due"),
    [
        (dict(), True),
        (dict(resume=False), False),  # weights that start a new run
        (dict(epoch=0), False),  # --resume without a checkpoint
        (dict(iteration=6), False),  # within an epoch
        (dict(val_interval=4), False),
        (dict(val_interval=4, epoch=3), True),  # the last one always is
        (dict(val_begin=3), False),
        (dict(loop=IterBasedTrainLoop, iteration=6, val_interval=3), True),
        (dict(loop=IterBasedTrainLoop, iteration=6, val_interval=4), False),
        (dict(loop=IterBasedTrainLoop, iteration=12, val_interval=5), True),
    ],
)
def test_only_what_was_due_is_made_up_for(tmp_path, given, due):
    assert validated(runner(tmp_path, **given)) is due


def test_a_run_without_validation(tmp_path):
    blind = runner(tmp_path)
    blind.val_loop = None
    ResumedValidationHook().before_train(blind)


def test_other_hooks_are_ready_before():
    assert HOOKS.build(dict(type="ResumedValidationHook")).priority == "LOWEST"
