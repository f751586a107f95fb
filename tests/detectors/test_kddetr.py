"""KDDETR: the student's own training untouched, the teacher's answers added."""

import copy
import itertools
import math
import weakref

import pytest
import torch
from conftest import (
    DINO_WIDTH,
    TEACHER,
    build,
    dino_config,
    needs_dino_widths,
    random_checkpoint,
    refused,
    teacher_of,
)
from mmdet.registry import MODELS
from mmengine.analysis import parameter_count
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import get_state_dict
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from kd_detr_mmdet.utils.errors import ConfigError, NonFiniteLossError


def weightless(model):
    """The model with all weights of its distillation loss at 0, which no config may ask for."""
    model.distill_loss.weights = dict.fromkeys(model.distill_loss.weights, 0.0)
    return model


def losses_of(model, data, seed=0):
    torch.manual_seed(seed)
    return model.train()(**data, mode="loss")


def gradients_of(model, data):
    """Gradient of every parameter by the plain student's names, None where there is none."""
    model.zero_grad()
    model.parse_losses(losses_of(model, copy.deepcopy(data)))[0].backward()
    return {n.removeprefix("student."): p.grad for n, p in model.named_parameters()}


def kd_terms(losses):
    return {name: value for name, value in losses.items() if "kd_loss" in name}


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(state, other):
    assert list(state) == list(other)
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def swin_student():
    cfg = dino_config()
    cfg.backbone = dict(
        type="SwinTransformer",
        embed_dims=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
        window_size=4,
        out_indices=(2, 3),
        drop_path_rate=0.2,
    )
    cfg.neck.in_channels = [32, 64]
    return cfg


def resnet34(**kwargs):
    cfg = dino_config(**kwargs)
    cfg.backbone.depth = 34
    return cfg


@pytest.fixture
def hub(monkeypatch):
    """The message hub of a run of its own: other tests must not see its iteration."""
    monkeypatch.setattr(MessageHub, "_instance_dict", {})
    return MessageHub.get_instance("test_kddetr")


# The student's own training


def test_own_losses_are_bit_identical_to_plain_mmdet(kd_config, batch):
    kd, plain = build(kd_config()), build(dino_config())
    data = batch(plain)
    plain_losses = losses_of(plain, copy.deepcopy(data))
    kd_losses = losses_of(kd, data)
    assert len(plain_losses) == 15
    for name, value in plain_losses.items():
        assert torch.equal(kd_losses[name], value), name


def test_student_starts_from_the_weights_of_plain_mmdet(kd_config):
    kd, plain = build(kd_config()), build(dino_config())
    randoms = []
    for cfg in (kd_config(), dino_config()):
        torch.manual_seed(0)
        MODELS.build(cfg)  # the teacher is built here, before any weight is initialised
        randoms.append(torch.get_rng_state())
    assert torch.equal(*randoms)
    assert_same(kd.state_dict(), plain.state_dict())


def test_with_all_weights_at_0_every_gradient_is_bit_equal(kd_config, batch):
    kd, plain = weightless(build(kd_config())), build(dino_config())
    data = batch(plain)
    ours, theirs = gradients_of(kd, data), gradients_of(plain, data)
    assert list(ours) == list(theirs)
    for name, gradient in theirs.items():
        assert torch.equal(ours[name], gradient), name


def test_steps_with_dropout_stay_bit_equal_to_plain_mmdet(kd_config, batch):
    """The extra decoder passes draw dropout masks too, but none of the student's."""
    cfg = dino_config(dropout=0.3)
    models = weightless(build(kd_config(student=cfg))), build(cfg)
    data = batch(models[1])
    states, randoms = [], []
    for model in models:
        wrapper = build_optim_wrapper(
            model, dict(optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=0.1))
        )
        torch.manual_seed(0)
        model.train()
        for _ in range(3):
            losses = model(**copy.deepcopy(data), mode="loss")
            wrapper.update_params(model.parse_losses(losses)[0])
        states.append(model.state_dict())
        randoms.append(torch.get_rng_state())
    assert_same(*states)
    assert torch.equal(*randoms)


def test_distillation_changes_the_gradients(kd_config, batch):
    kd, plain = build(kd_config()), build(dino_config())
    data = batch(plain)
    ours, theirs = gradients_of(kd, data), gradients_of(plain, data)
    changed = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert {name.split(".")[0] for name in changed} >= {
        "backbone",
        "neck",
        "encoder",
        "decoder",
        "bbox_head",
    }


def test_kd_terms_alone_teach_all_but_the_students_own_queries(kd_config, batch):
    kd = build(kd_config())
    sum(kd_terms(losses_of(kd, batch(kd))).values()).backward()
    taught = {
        name.split(".")[1]
        for name, p in kd.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert {"backbone", "neck", "encoder", "decoder", "bbox_head"} <= taught
    assert not {"query_embedding", "dn_query_generator", "memory_trans_fc"} & taught


# Pairs


PAIRS = {
    "resnet18_of_34": (dino_config(), resnet34(**TEACHER)),
    "swin_of_resnet": (swin_student(), dino_config(**TEACHER)),
    "resnet_of_swin": (dino_config(), swin_student()),
    "narrow_of_wide": (dino_config(), dino_config(width=64, decoder_layers=3)),
    "wide_of_narrow": (dino_config(width=64), dino_config()),
    "deep_of_shallow": (dino_config(decoder_layers=4), dino_config(decoder_layers=1)),
    "two_levels_of_three": (dino_config(levels=2), dino_config(levels=3)),
    "three_levels_of_two": (dino_config(levels=3), dino_config(levels=2)),
    "few_queries_of_many": (dino_config(num_queries=5), dino_config(num_queries=28)),
    "many_queries_of_few": (dino_config(num_queries=28), dino_config(num_queries=5)),
}
DEEP = dino_config()
DEEP.encoder.num_layers = 3
PAIRS["encoder_of_another_depth"] = (dino_config(), DEEP)


@pytest.mark.parametrize(
    "pair", [pytest.param(p, marks=needs_dino_widths if "narrow" in p else ()) for p in PAIRS]
)
def test_student_and_teacher_may_differ(pair, kd_config, batch, tmp_path):
    student, teacher = PAIRS[pair]
    checkpoint = random_checkpoint(tmp_path / "teacher.pth", teacher)
    kd = build(kd_config(student=student, teacher=dict(config=teacher, checkpoint=checkpoint)))
    plain = build(student)
    data = batch(plain)
    ours, theirs = gradients_of(kd, data), gradients_of(plain, data)
    reached = {name for name, gradient in theirs.items() if gradient is not None}
    assert reached == {name for name, gradient in ours.items() if gradient is not None}
    assert len(reached) > 100
    assert all(ours[name].isfinite().all() for name in reached)
    losses = losses_of(kd, data)
    depth = student.decoder.num_layers
    assert len(kd_terms(losses)) == 2 * 3 * depth
    assert all(value.isfinite() and value > 0 for value in kd_terms(losses).values())


@pytest.mark.parametrize("shapes", [((3, 64, 96), (3, 48, 80)), ((3, 64, 96), (3, 64, 96))])
def test_identical_student_and_teacher_agree_to_0(kd_config, batch, tmp_path, shapes):
    # The student's batch norm would look at the batch in train mode, the teacher's does not.
    cfg = dino_config()
    cfg.backbone.norm_eval = True
    checkpoint = random_checkpoint(tmp_path / "twin.pth", cfg)
    cfg = kd_config(student=cfg, teacher=dict(config=cfg, checkpoint=checkpoint))
    kd, unlike = build(cfg), build(cfg)
    load_checkpoint(kd, checkpoint, strict=True)
    same = kd_terms(losses_of(kd, batch(kd, shapes)))
    assert kd.training
    other = kd_terms(losses_of(unlike, batch(kd, shapes)))
    last = [name for name in same if name.startswith("kd_loss")]
    assert len(last) == 6
    for name in last:
        assert abs(same[name]) < (1e-5 if DINO_WIDTH == 32 else 1e-4), name  # 2e-5 at 256
        assert other[name] > 1e-3, name


# Batches


@pytest.mark.parametrize("num_items", [[3, 0], [0, 0]])
def test_images_without_boxes(kd_config, batch, num_items):
    kd, plain = build(kd_config()), build(dino_config())
    data = batch(plain)
    full = losses_of(build(kd_config()), copy.deepcopy(data))
    for sample, number in zip(data["data_samples"], num_items):
        sample.gt_instances = sample.gt_instances[:number]
    assert [len(sample.gt_instances) for sample in data["data_samples"]] == num_items
    ours, theirs = losses_of(kd, copy.deepcopy(data)), losses_of(plain, copy.deepcopy(data))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    # Where the models are asked has nothing to do with the boxes.
    for name, value in kd_terms(full).items():
        assert value > 0
        assert torch.equal(kd_terms(ours)[name], value), name


@pytest.mark.parametrize("width", [96, 64])
def test_every_decoding_knows_the_padding(kd_config, batch, width):
    kd = build(kd_config())
    seen = []
    for model in (kd.student, kd.teacher):
        model.decoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
        )
    losses = losses_of(kd, batch(kd, ((3, 64, 96), (3, 64, width))))
    assert all(value.isfinite() for value in kd_terms(losses).values())
    assert len(seen) == 5
    for inputs in seen:
        if width == 96:  # nothing is padded
            assert inputs["key_padding_mask"] is None
        else:
            assert not inputs["key_padding_mask"][0].any()
            assert inputs["key_padding_mask"][1].any()
            assert (inputs["valid_ratios"][1, :, 0] < 1).all()


# Losses and points


@pytest.mark.parametrize(
    "points, sets",
    [
        (dict(num_general=10), ("specific", "general")),
        (dict(num_general=10, specific=False), ("general",)),
        (dict(num_general=0), ("specific",)),
    ],
)
def test_every_set_has_three_terms_in_every_layer(kd_config, batch, points, sets):
    kd = build(kd_config(student=dino_config(decoder_layers=3), points=points))
    expected = {
        f"{layer}kd_loss_{name}_{term}"
        for layer, name, term in itertools.product(("d0.", "d1.", ""), sets, ("cls", "l1", "giou"))
    }
    assert set(kd_terms(losses_of(kd, batch(kd)))) == expected


def test_defaults_suffice(teacher_checkpoint, batch):
    student = dino_config()
    preprocessor = student.pop("data_preprocessor")
    kd = build(
        dict(
            type="KDDETR",
            student=student,
            teacher=dict(config=dino_config(**TEACHER), checkpoint=teacher_checkpoint),
            data_preprocessor=preprocessor,
        )
    )
    assert kd.point_generator.num_general == 300
    assert kd.point_generator.specific
    assert torch.equal(kd.student.data_preprocessor.mean, kd.data_preprocessor.mean)
    losses = losses_of(kd, batch(kd))
    assert all(torch.as_tensor(value).isfinite() for value in losses.values())
    assert len(kd_terms(losses)) == 12


def test_decoders_run_no_more_often_than_they_must(kd_config, batch):
    kd = build(kd_config())
    calls = []
    for name in ("student", "teacher"):
        model = getattr(kd, name)
        for part in ("backbone", "encoder", "decoder"):
            getattr(model, part).register_forward_hook(
                lambda *_, key=f"{name} {part}": calls.append(key)
            )
    losses_of(kd, batch(kd))
    assert {key: calls.count(key) for key in calls} == {
        "student backbone": 1,
        "student encoder": 1,
        "student decoder": 3,  # own, specific, general
        "teacher backbone": 1,
        "teacher encoder": 1,
        "teacher decoder": 2,  # own, which is specific, and general
    }


def test_switched_off_the_teacher_does_nothing_and_the_losses_are_0(kd_config, batch):
    kd, plain = build(kd_config()), build(dino_config())
    data = batch(plain)
    distilled = losses_of(kd, copy.deepcopy(data))
    kd.teacher.forward_transformer = kd.teacher.extract_feat = lambda *_: 1 / 0
    kd.distill_factor = 0.0
    calls = []
    kd.student.decoder.register_forward_hook(lambda *_: calls.append(1))
    losses = losses_of(kd, copy.deepcopy(data))
    assert len(calls) == 1
    assert list(losses) == list(distilled)
    assert all(value == 0 for value in kd_terms(losses).values())
    assert all(value == 0 for value in kd.diagnostics.values())
    ours, theirs = gradients_of(kd, data), gradients_of(plain, data)
    for name, gradient in theirs.items():
        assert torch.equal(ours[name], gradient), name


def test_the_factor_is_of_every_distillation_loss_and_of_no_other(kd_config, batch):
    kd = build(kd_config(points=dict(num_general=0)))
    data = batch(kd)
    whole = losses_of(kd, copy.deepcopy(data))
    raw = dict(kd.diagnostics)
    kd.distill_factor = 0.25
    for name, value in losses_of(kd, data).items():
        expected = whole[name] * 0.25 if "kd_loss" in name else whole[name]
        torch.testing.assert_close(value, expected)
    assert set(raw) == {name.replace("kd_loss", "kd_raw") for name in kd_terms(whole)} | {
        "kd_foreground_specific"
    }
    for name, value in kd.diagnostics.items():
        torch.testing.assert_close(value, raw[name])


class Waits(TorchDispatchMode):
    """Counts how often a value is read from the device, for which a GPU is waited for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_distillation_waits_for_the_device_at_its_end_alone(kd_config, batch):
    """Beside what mmdet waits for: in the student's losses, the teacher, and all decoding."""
    kd = build(kd_config())
    data = batch(kd)

    def unwatched(function):
        def call(*args, **kwargs):
            with _disable_current_modes():
                return function(*args, **kwargs)

        return call

    kd.student.loss = unwatched(kd.student.loss)
    kd.teacher_family.look = unwatched(kd.teacher_family.look)
    for model in (kd.student, kd.teacher):
        model.decoder.forward = unwatched(model.decoder.forward)
    with Waits() as waits:
        losses_of(kd, data)
    assert waits.count == 2  # are the losses finite, did all look at the points


def test_nothing_of_a_step_outlives_it(kd_config, batch):
    """Memory, queries and what was made of them go with the step's graph."""
    kd = build(kd_config())
    kept = []
    for family in kd._families:
        answer = family.answer

        def spy(record, *asked, answer=answer):
            result = answer(record, *asked)
            kept.extend(
                map(weakref.ref, [record["inputs"]["memory"], *record["projections"].values()])
            )
            return result

        family.answer = spy
    losses = losses_of(kd, batch(kd))
    # A memory each, two and three decoder layers; the student was asked twice.
    assert len(kept) == 2 * (1 + 2) + (1 + 3)
    sum(kd_terms(losses).values()).backward()
    del losses
    assert not [reference for reference in kept if reference() is not None]


def spy_general(model, monkeypatch):
    """Collects the general boxes that a model draws."""
    drawn, draw = [], model.point_generator.general

    def general(*args):
        drawn.append(draw(*args).boxes)
        return draw(*args)

    monkeypatch.setattr(model.point_generator, "general", general)
    return drawn


def test_general_points_are_drawn_anew_in_every_step(kd_config, batch, monkeypatch):
    kd = build(kd_config())
    drawn = spy_general(kd, monkeypatch)
    for _ in range(3):
        losses_of(kd, batch(kd))  # same seed, same images
    assert drawn[0].shape == (2, 10, 4)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    assert not torch.equal(drawn[0][0], drawn[0][1])  # and for every image


def test_the_seed_reproduces_three_steps(kd_config, batch):
    runs = []
    for seed in (5, 5, 6):
        kd = build(kd_config())
        data = batch(kd)
        torch.manual_seed(seed)
        kd.train()
        runs.append([kd_terms(kd(**copy.deepcopy(data), mode="loss")) for _ in range(3)])
    for first, second, third in zip(*runs):
        for name, value in first.items():
            assert torch.equal(value, second[name]), name
            assert ("general" in name) == (not torch.equal(value, third[name])), name


def test_the_iteration_names_the_draw(kd_config, batch, monkeypatch, hub):
    """A resumed run, whose model is new, draws what the uninterrupted one would have drawn."""

    def draws(iterations):
        kd = build(kd_config())
        drawn = spy_general(kd, monkeypatch)
        for iteration in iterations:
            hub.update_info("iter", iteration)
            losses_of(kd, batch(kd))
        return drawn

    whole, resumed = draws([0, 1, 2, 2]), draws([2, 2])
    assert torch.equal(whole[2], resumed[0])
    assert torch.equal(whole[3], resumed[1])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(whole, 2))


# Losses that are not finite


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_loss_that_is_not_finite_is_named(kd_config, batch, hub, who):
    kd = build(kd_config())
    data = batch(kd)
    for i, sample in enumerate(data["data_samples"]):
        sample.set_metainfo(dict(img_id=700 + i))
    hub.update_info("iter", 42)
    with torch.no_grad():
        # Layer 1 of the student is its last; the class branch of the encoder comes after it.
        layers = getattr(kd, who).decoder.num_layers
        getattr(kd, who).bbox_head.cls_branches[layers - 1].bias.fill_(math.nan)
    if who == "student":  # the assigner meets the student's NaN first, if it is asked to
        kd.student.bbox_head.assigner.assign = lambda *args, **kwargs: _no_match(args, kwargs)
    with pytest.raises(NonFiniteLossError) as error:
        losses_of(kd, data)
    message = str(error.value)
    assert "kd_loss_general_cls = nan" in message
    assert "at iteration 42" in message
    assert "700, 701" in message
    # Only what is broken: every layer learns from the teacher's last, yet boxes are fine.
    assert ("d0.kd_loss_general_cls = nan" in message) == (who == "teacher")
    assert (" loss_cls = nan" in " " + message) == (who == "student")
    assert "loss_bbox" not in message


def _no_match(args, kwargs):
    from mmdet.models.task_modules.assigners import AssignResult

    instances = kwargs["pred_instances"]
    gts = kwargs["gt_instances"]
    assigned = instances.scores.new_zeros(len(instances), dtype=torch.long)
    labels = torch.full_like(assigned, -1)
    return AssignResult(len(gts), assigned, None, labels=labels)


def test_an_infinite_loss_is_refused_and_a_finite_one_is_not(kd_config, batch):
    kd = build(kd_config())
    losses_of(kd, batch(kd))
    with torch.no_grad():
        kd.student.bbox_head.cls_branches[1].bias.fill_(3e38)
    with pytest.raises(NonFiniteLossError, match="= inf"):
        losses_of(kd, batch(kd, num_items=[0, 0]))


# The teacher


def test_teacher_is_frozen_and_in_eval(kd_config, batch):
    kd = build(kd_config())
    before = state_of(kd.teacher)
    for mode in (True, False, True):
        assert kd.train(mode) is kd
        assert kd.student.training is mode
        assert not any(module.training for module in kd.teacher.modules())
    gradients_of(kd, batch(kd))
    assert not any(module.training for module in kd.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in kd.teacher.parameters())
    assert_same(before, kd.teacher.state_dict())  # batch norm's running statistics included


def test_teacher_is_pulled_back_to_eval(kd_config):
    kd = build(kd_config())
    kd.teacher.train()
    kd.train()
    assert not kd.teacher.training


def test_teacher_is_no_submodule(kd_config):
    kd = build(kd_config())
    teachers = {id(m) for m in kd.teacher.modules()}
    tensors = {id(t) for t in itertools.chain(kd.teacher.parameters(), kd.teacher.buffers())}
    assert not teachers & {id(m) for m in kd.modules()}
    assert not tensors & {id(t) for t in itertools.chain(kd.parameters(), kd.buffers())}
    names = [*dict(kd.named_parameters()), *dict(kd.named_buffers()), *kd.state_dict()]
    assert len(names) > 300
    assert not any("teacher" in name for name in names)


def test_optimizer_holds_the_student_alone(kd_config):
    kd = build(kd_config())
    wrapper = build_optim_wrapper(kd, dict(optimizer=dict(type="AdamW", lr=1e-3)))
    held = {id(p) for group in wrapper.param_groups for p in group["params"]}
    assert held == {id(p) for p in kd.student.parameters()}


@pytest.mark.parametrize("convert, dtype", [("double", torch.float64), ("half", torch.float16)])
def test_teacher_follows_the_dtype(kd_config, convert, dtype):
    kd = build(kd_config())
    getattr(kd, convert)()
    assert {p.dtype for p in kd.teacher.parameters()} == {dtype}
    assert {p.dtype for p in kd.student.parameters()} == {dtype}
    assert kd.teacher.backbone.bn1.running_mean.dtype == dtype
    assert kd.to(torch.float32).teacher.query_embedding.weight.dtype == torch.float32


def test_teacher_follows_to_another_device(kd_config):
    kd = build(kd_config()).to("meta")
    assert {p.device.type for p in kd.teacher.parameters()} == {"meta"}
    assert {p.device.type for p in kd.student.parameters()} == {"meta"}


def test_teacher_survives_init_weights(kd_config, teacher_checkpoint):
    kd = MODELS.build(kd_config())
    student, teacher = state_of(kd.student), state_of(kd.teacher)
    kd.init_weights()
    assert_same(teacher, kd.teacher.state_dict())
    saved = torch.load(teacher_checkpoint, weights_only=True)["state_dict"]
    assert_same(saved, kd.teacher.state_dict())
    assert any(not torch.equal(v, student[k]) for k, v in kd.student.state_dict().items())


@pytest.mark.parametrize("copied", ["deepcopy", "ema"])
def test_copies_share_the_teacher(kd_config, batch, copied):
    kd = build(kd_config())
    twin = copy.deepcopy(kd) if copied == "deepcopy" else ExponentialMovingAverage(kd).module
    assert twin.teacher is kd.teacher
    assert twin.teacher_family.detector is kd.teacher
    assert twin.student_family.detector is twin.student
    assert not {id(p) for p in kd.parameters()} & {id(p) for p in twin.parameters()}
    assert_same(kd.state_dict(), twin.state_dict())
    data = batch(kd)
    with torch.no_grad():
        ours, theirs = losses_of(kd, copy.deepcopy(data)), losses_of(twin, copy.deepcopy(data))
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value)
        twin.student.bbox_head.cls_branches[1].bias.add_(1)
        theirs = losses_of(twin, data)
    assert not torch.equal(theirs["kd_loss_general_cls"], ours["kd_loss_general_cls"])
    assert not torch.equal(*(m.student.bbox_head.cls_branches[1].bias for m in (kd, twin)))


@pytest.mark.parametrize("update_buffers", [False, True])
def test_ema_averages_the_student(kd_config, update_buffers):
    kd = build(kd_config())
    ema = ExponentialMovingAverage(kd, momentum=0.25, update_buffers=update_buffers)
    ema.update_parameters(kd)  # the first call copies
    name = "bbox_head.cls_branches.0.bias"
    before = kd.state_dict()[name].clone()
    teacher = state_of(kd.teacher)
    with torch.no_grad():
        for p in kd.parameters():
            p.add_(1)
    ema.update_parameters(kd)
    torch.testing.assert_close(ema.module.state_dict()[name], before + 0.25)
    assert_same(teacher, kd.teacher.state_dict())


# Checkpoints


def test_state_dict_is_the_plain_students(kd_config, batch):
    kd, plain = build(kd_config()), build(dino_config())
    with torch.no_grad():
        for p in kd.parameters():
            p.add_(0.02)
    state = kd.state_dict()
    assert list(state) == list(plain.state_dict())
    # Versions steer how MMCV and PyTorch read old checkpoints.
    versions = plain.state_dict()._metadata
    assert {k: v for k, v in state._metadata.items() if k in versions} == versions
    plain.load_state_dict(state, strict=True)
    assert_same_predictions(kd, plain, batch)


def assert_same_predictions(model, plain, batch):
    data = batch(plain, training=False)
    ours, theirs = (m.eval()(**copy.deepcopy(data), mode="predict") for m in (model, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine.pred_instances) == 12
        for field in ("bboxes", "scores", "labels"):
            assert torch.equal(mine.pred_instances[field], other.pred_instances[field])


def test_state_dict_makes_the_round_trip(kd_config):
    source = build(kd_config())
    target = MODELS.build(kd_config())
    assert not torch.equal(
        *(next(m.decoder.parameters()) for m in (source.student, target.student))
    )
    state = source.state_dict()
    names = list(state)
    target.load_state_dict(state, strict=True)
    assert_same(source.state_dict(), target.state_dict())
    assert list(state) == names  # the caller's dict is left alone


def test_plain_student_loads_into_a_distillation(kd_config):
    kd, plain = MODELS.build(kd_config()), build(dino_config())
    kd.load_state_dict(plain.state_dict(), strict=True)
    assert_same(kd.student.state_dict(), plain.state_dict())


@pytest.mark.parametrize("load", ["torch", "mmengine"])
def test_state_dict_within_a_wrapper(kd_config, load):
    kd, plain = build(kd_config()), build(dino_config())
    ema = ExponentialMovingAverage(kd)
    state = ema.state_dict()
    assert set(state) == {"steps", *(f"module.{key}" for key in plain.state_dict())}
    assert list(get_state_dict(ema)) == list(state)
    other = ExponentialMovingAverage(MODELS.build(kd_config()))
    if load == "torch":
        other.load_state_dict(state, strict=True)
    else:
        mmengine_load(other, state, strict=True)
    assert_same(other.module.student.state_dict(), kd.student.state_dict())


def test_mmengine_saves_and_loads_the_plain_student(kd_config, tmp_path):
    kd, plain = build(kd_config()), build(dino_config())
    state = get_state_dict(kd)
    assert_same(state, plain.state_dict())
    torch.save(dict(state_dict=state), tmp_path / "saved.pth")
    target = MODELS.build(kd_config())
    load_checkpoint(target, str(tmp_path / "saved.pth"), strict=True)
    assert_same(target.state_dict(), kd.state_dict())


@pytest.mark.parametrize("load", ["torch", "mmengine"])
def test_strict_loading_reports_keys(kd_config, load):
    kd = build(kd_config())
    state = kd.state_dict()
    state["bbox_head.surplus"] = torch.zeros(1)
    del state["query_embedding.weight"]
    loader = (
        kd.load_state_dict if load == "torch" else lambda s, strict: mmengine_load(kd, s, strict)
    )
    with pytest.raises(RuntimeError) as error:
        loader(state, strict=True)
    assert "bbox_head.surplus" in str(error.value)
    assert "query_embedding.weight" in str(error.value)


# Outside of training


@pytest.fixture
def untaught(kd_config, monkeypatch):
    """A KDDETR in which every part of the distillation is a trap."""

    def trap(*args, **kwargs):
        raise AssertionError("distillation code ran outside of training")

    kd = build(kd_config())
    for name in ("forward", "extract_feat", "forward_transformer", "forward_decoder", "predict"):
        monkeypatch.setattr(kd.teacher, name, trap)
    monkeypatch.setattr(kd.distill_loss, "forward", trap)
    monkeypatch.setattr(kd, "point_generator", trap)
    for family in kd._families:
        for name in ("recording", "look", "answer", "queries"):
            monkeypatch.setattr(family, name, trap)
    return kd


def test_predictions_are_the_students_alone(untaught, batch):
    assert_same_predictions(untaught, build(dino_config()), batch)
    with pytest.raises(AssertionError, match="outside of training"):
        losses_of(untaught, batch(untaught))  # the traps do work


def test_tensor_mode_and_features_are_the_students_alone(untaught, batch):
    plain = build(dino_config()).eval()
    data = batch(plain, training=False)
    ours = untaught.eval()(**copy.deepcopy(data), mode="tensor")
    theirs = plain(**copy.deepcopy(data), mode="tensor")
    assert len(ours) == len(theirs) > 1
    for mine, other in zip(ours, theirs):
        assert torch.equal(mine, other)
    features = zip(untaught.extract_feat(data["inputs"]), plain.extract_feat(data["inputs"]))
    assert all(torch.equal(a, b) for a, b in features)


def test_parameters_count_as_the_students(kd_config):
    kd, plain = build(kd_config()), build(dino_config())
    assert parameter_count(kd)[""] == parameter_count(plain)[""] == _numel(kd) == _numel(plain)


def _numel(model):
    return sum(p.numel() for p in model.parameters())


# What cannot be distilled


@needs_dino_widths
def test_content_of_another_width(kd_config):
    cfg = kd_config(teacher=teacher_of(width=64), student_content="teacher")
    message = refused(cfg)
    assert "student_content='teacher'" in message
    assert "64" in message
    assert "32" in message
    assert "'auto'" in message
    MODELS.build(kd_config(teacher=teacher_of(width=64), student_content="blank"))


def test_a_teacher_that_names_no_data_preprocessor_sees_the_students_pixels(kd_config, batch):
    cfg = kd_config(teacher=teacher_of())
    cfg.teacher.config.pop("data_preprocessor")
    kd, usual = build(cfg), build(kd_config(teacher=teacher_of()))
    data = batch(kd)
    losses = losses_of(kd, copy.deepcopy(data))
    for name, value in losses_of(usual, data).items():
        assert torch.equal(losses[name], value)


def test_two_data_preprocessors(kd_config):
    own = dino_config().data_preprocessor
    message = refused(kd_config(data_preprocessor={**own, "mean": [0.0, 0.0, 0.0]}))
    assert "data_preprocessor and student.data_preprocessor differ" in message
    assert "keep one of them" in message
    MODELS.build(kd_config(data_preprocessor=own))


@pytest.mark.parametrize(
    "teacher, told",
    [
        (dict(config=dino_config()), "['config']"),
        (dict(checkpoint=None), "['checkpoint']"),
        (dict(config=dino_config(), checkpoint=None, ckpt="x"), "'ckpt'"),
        ("teacher.py", "got str"),
    ],
)
def test_teacher_options(kd_config, teacher, told):
    message = refused(kd_config(teacher=teacher))
    assert "teacher must be dict(config=..., checkpoint=..., strict=True, trust=False" in message
    assert told in message


@pytest.mark.parametrize("ap", [0.45, 101, True, "45"])
def test_the_teachers_stated_ap_is_in_percent(kd_config, ap):
    config = kd_config()
    config.teacher.ap = ap
    with pytest.raises(ConfigError, match="teacher.ap must be COCO's AP in percent"):
        MODELS.build(config)


def retinanet():
    cfg = get_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py").model
    cfg.backbone.update(depth=18, base_channels=4, stem_channels=4, init_cfg=None)
    cfg.neck.update(in_channels=[4, 8, 16, 32])
    return cfg


def fcos():
    cfg = get_config("mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py").model
    cfg.backbone.update(depth=18, base_channels=4, stem_channels=4, style="pytorch", init_cfg=None)
    cfg.neck.update(in_channels=[4, 8, 16, 32])
    return cfg


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("make, name", [(retinanet, "RetinaNet"), (fcos, "FCOS")])
def test_unknown_family(kd_config, role, make, name):
    given = make() if role == "student" else dict(config=make(), checkpoint=None)
    message = refused(kd_config(**{role: given}))
    assert message.startswith(f"{name} cannot be distilled")
    known = "DINO, DABDETR, DeformableDETR, ConditionalDETR, DDQDETR, DETR"
    assert f"KDDETR knows {known}" in message
    assert "kd_detr_mmdet/families" in message


@pytest.mark.parametrize(
    "points, told",
    [
        (dict(num_general=-1), "points.num_general must be a whole number of at least 0, got -1"),
        (dict(num_general=2.5), "got 2.5"),
        (dict(num_general=True), "got True"),
        (dict(num_general="300"), "got '300'"),
        (dict(num_general=0, specific=False), "points leave nothing to distil"),
        (dict(specific=1), "points.specific must be True or False"),
        (dict(distribution="sobol"), "points.distribution must be one of 'uniform', 'normal'"),
    ],
)
def test_bad_points(kd_config, points, told):
    assert told in refused(kd_config(points=points))


@pytest.mark.parametrize("option", ["blank_content", "student_content"])
def test_bad_content(kd_config, option):
    assert f"{option} must be one of" in refused(kd_config(**{option: "random"}))


def test_config_may_be_built_twice(kd_config):
    cfg = kd_config(points=dict(num_general=7), distill_loss=dict(l1_weight=3))
    before = copy.deepcopy(cfg)
    for _ in range(2):
        kd = MODELS.build(cfg)
        assert kd.point_generator.num_general == 7
        assert kd.distill_loss.weights["l1"] == 3
    assert cfg == before


def test_mixed_precision_keeps_the_distillation_losses_in_float32(kd_config, batch):
    kd = build(kd_config()).train()
    data = batch(kd)
    full = losses_of(kd, copy.deepcopy(data))
    torch.manual_seed(0)
    kd._last_step = (-1, 0)  # draw the same general points once more
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = kd(**data, mode="loss")
    for name, value in half.items():
        if name.startswith(("kd_", "d0.kd_")):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, full[name], rtol=0.1, atol=0.1)
    sum(half[name] for name in half if "kd_loss" in name).backward()
    assert all(p.grad.isfinite().all() for p in kd.parameters() if p.grad is not None)
