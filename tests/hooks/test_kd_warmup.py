"""KDWarmup: the factor over time, and a run in which the teacher comes and goes."""

from types import SimpleNamespace

import pytest
from conftest import build, dino_config
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from kd_detr_mmdet.hooks import KDWarmup
from kd_detr_mmdet.utils.errors import ConfigError


def factors(times, **options):
    hook = HOOKS.build(dict(type="KDWarmup", **options))
    return [hook.factor(time) for time in times]


def test_warm_up_is_linear_and_then_all_of_it():
    assert factors([0, 1, 2, 3, 4, 5, 1000], warmup=4) == [0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_off_at_once():
    assert factors([0, 6, 7, 8], off=7) == [1, 1, 0, 0]
    assert factors([0, 0.5, 1, 8.99, 9], warmup=1, off=9, by_epoch=True) == [0, 0.5, 1, 1, 0]


@pytest.mark.parametrize(
    ("decay", "middle"),
    # A quarter, a half and three quarters of the way: (1 + cos(pi x)) / 2.
    [("linear", [0.75, 0.5, 0.25]), ("cosine", [0.8535534, 0.5, 0.1464466])],
)
def test_decay(decay, middle):
    expected = [0, 1, 1, *middle, 0, 0]
    times = [0, 2, 4, 6, 8, 10, 12, 13]
    found = factors(times, warmup=2, decay=decay, decay_from=4, off=12)
    assert found == pytest.approx(expected, abs=1e-7)
    # Without decay_from it begins when the warm-up is over.
    assert factors([4], decay=decay, off=8) == pytest.approx([0.5])
    assert factors([6], warmup=4, decay=decay, off=8) == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(), "set warmup or off"),
        (dict(warmup=-1), "KDWarmup.warmup must be at least 0, got -1"),
        (dict(warmup=float("nan")), "got nan"),
        (dict(off="12"), "KDWarmup.off must be at least 0, got '12'"),
        (dict(off=True), "got True"),
        (dict(warmup=1, by_epoch=1), "KDWarmup.by_epoch must be True or False"),
        (dict(off=4, decay="exp"), "KDWarmup.decay must be one of 'none', 'linear', 'cosine'"),
        (dict(warmup=3, decay="cosine"), "decay='cosine' needs off"),
        (dict(off=4, decay_from=2), "decay_from needs decay"),
        (dict(warmup=4, off=4), "warmup <= decay_from < off, got 4, 4 and 4"),
        (dict(off=4, decay="linear", decay_from=5), "got 0, 5 and 4"),
        (dict(warmup=3, off=9, decay="linear", decay_from=2), "got 3, 2 and 9"),
        (dict(off=0), "warmup <= decay_from < off, got 0, 0 and 0"),
    ],
)
def test_bad_arguments(options, told):
    with pytest.raises(ConfigError) as error:
        KDWarmup(**options)
    assert told in str(error.value)


def runner_of(model, iteration=0, length=10, wrapped=False):
    return SimpleNamespace(
        model=SimpleNamespace(module=model) if wrapped else model,
        iter=iteration,
        train_dataloader=range(length),
        train_loop=None,
        max_iters=60,
        message_hub=MessageHub("kd_warmup"),
    )


def test_refuses_what_it_is_not_made_for(kd_config):
    with pytest.raises(ConfigError, match="model is no KDDETR"):
        KDWarmup(warmup=1).before_train(runner_of(build(dino_config())))
    model = build(kd_config())
    KDWarmup(warmup=1).before_train(runner_of(model, wrapped=True))
    with pytest.raises(ConfigError, match="by_epoch=True needs training by epochs"):
        KDWarmup(warmup=1, by_epoch=True).before_train(runner_of(model))


def test_an_end_of_distillation_after_that_of_training_is_refused(kd_config):
    runner = runner_of(build(kd_config()))
    runner.max_epochs = 6
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    for end, by_epoch in ((60, False), (6, True)):
        runner.train_loop = loop if by_epoch else None
        with pytest.raises(ConfigError, match=f"off={end} is never reached.* ends after {end}"):
            KDWarmup(off=end, by_epoch=by_epoch).before_train(runner)
        KDWarmup(off=end - 1, by_epoch=by_epoch).before_train(runner)
        KDWarmup(off=end, decay="linear", by_epoch=by_epoch).before_train(runner)
        with pytest.raises(ConfigError, match="is never reached"):
            KDWarmup(off=end + 1, decay="linear", by_epoch=by_epoch).before_train(runner)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_new_hook_goes_on_where_a_run_is_resumed(kd_config, wrapped):
    model = build(kd_config())
    for options, expected in ((dict(warmup=50), 0.5), (dict(warmup=5, by_epoch=True), 0.5)):
        runner = runner_of(model, 25, wrapped=wrapped)
        KDWarmup(**options).before_train_iter(runner, 3)
        assert model.distill_factor == expected
        assert runner.message_hub.get_scalar("train/kd_factor").current() == expected


def test_a_run_in_which_the_teacher_comes_and_goes(kd_config, train_tiny):
    looks, iteration = [], []
    model = build(kd_config())
    model.register_forward_pre_hook(lambda *_: iteration.append(len(iteration)))
    model.teacher.backbone.register_forward_hook(lambda *_: looks.append(iteration[-1]))
    hook = dict(type="KDWarmup", warmup=2, off=4)
    rows, _ = train_tiny(model, iterations=6, interval=1, hooks=[hook])
    assert [row["kd_factor"] for row in rows] == [0, 0.5, 1, 1, 0, 0]
    assert looks == [1, 2, 3]  # where the factor is 0 nothing is asked of it
    kd_losses = {name for name in rows[0] if "kd_loss" in name}
    assert len(kd_losses) == 12
    assert all(rows[0][name] == 0 for name in kd_losses)
    assert [row["kd_share"] > 0 for row in rows] == [False, True, True, True, False, False]
    assert [row["kd_foreground_general"] > 0 for row in rows] == [False, *[True] * 3, *[False] * 2]
    weight = model.distill_loss.weights["l1"]
    # Losses in the log are means over the run so far: their sums are those of the steps.
    sums = [row["kd_loss_general_l1"] * (i + 1) for i, row in enumerate(rows)]
    steps = [after - before for before, after in zip([0, *sums], sums)]
    raws = [row["kd_raw_general_l1"] * weight * row["kd_factor"] for row in rows]
    assert steps == pytest.approx(raws, abs=1e-4)
    assert raws[1] > 0.01
