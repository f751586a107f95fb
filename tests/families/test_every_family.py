"""What holds for every family, seen from outside: nothing lost, nothing left behind."""

import contextlib
import copy

import pytest
import torch
from conftest import DINO_WIDTH, FAMILY_CONFIGS, build, noisy

from kd_detr_mmdet.families import Family, build_family
from kd_detr_mmdet.points import DistillPoints

SHAPES = dict(padded=((3, 64, 96), (3, 48, 80)), unpadded=((3, 64, 96), (3, 64, 96)))
TYPES = dict(
    dino="DINO",
    dab="DABDETR",
    deformable="DeformableDETR",
    refine="DeformableDETR",
    two_stage="DeformableDETR",
    conditional="ConditionalDETR",
    ddq="DDQDETR",
    detr="DETR",
)
# (content_dims, box_dims) at a width of 32, or of 256 where mmdet has no other.
DIMS = dict(
    dino=(DINO_WIDTH, 4),
    dab=(32, 4),
    deformable=(64, 2),
    refine=(64, 2),
    two_stage=(0, 4),
    conditional=(256, 2),
    ddq=(32, 4),
    detr=(32, 0),
)


def calm(cfg):
    """The config without what makes training and evaluation differ: dropout and batch norm."""
    cfg = copy.deepcopy(cfg)
    cfg.backbone.norm_eval = True

    def still(part):
        for name, value in part.items():
            if name in ("dropout", "attn_drop", "ffn_drop"):
                part[name] = 0.0
            elif isinstance(value, dict):
                still(value)

    still(cfg)
    return cfg


@pytest.fixture(scope="module", params=FAMILY_CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def shared(name):
    return noisy(calm(FAMILY_CONFIGS[name]))


@pytest.fixture
def detector(shared):
    return shared.eval()


@pytest.fixture(params=SHAPES)
def shapes(request):
    return SHAPES[request.param]


def look(detector, data, training=False):
    """Record a detector's decoding at inference, or within a step of training."""
    family = build_family(detector)
    with torch.no_grad():
        if not training:
            return family, family.look(data["inputs"], data["data_samples"])
        with family.recording() as record:
            detector.train().loss(data["inputs"], data["data_samples"])
    return family, record


def some_points(family, num_points=7):
    """Points that every detector of the family can be asked at."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, num_points, 4, generator=generator)
    content = torch.randn(2, num_points, family.content_dims, generator=generator)
    return DistillPoints(boxes, content if family.content_dims else None)


def same_values(ours, theirs):
    """Whether two nested values are bit-equal."""
    if torch.is_tensor(ours):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same_values(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same_values, ours, theirs))
    return ours is theirs or ours == theirs


def state_of(detector):
    """All that a call might leave behind in a detector, beside its weights."""
    modules = {}
    for name, module in detector.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        modules[name] = module.training, hooks, sorted(vars(module))
    return modules, dict(getattr(detector, "cache_dict", {}))


def assert_same_predictions(model, plain, data):
    ours, theirs = (m.eval()(**copy.deepcopy(data), mode="predict") for m in (model, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine.pred_instances) > 0
        for field in ("bboxes", "scores", "labels"):
            assert torch.equal(mine.pred_instances[field], other.pred_instances[field])


# --- the student's own training -------------------------------------------------------------------


def test_own_losses_are_bit_identical_to_plain_mmdet(name, pair, batch, shapes):
    cfg = FAMILY_CONFIGS[name]
    kd, plain = pair(cfg, cfg), noisy(cfg, seed=2)
    kd.load_state_dict(plain.state_dict())
    data = batch(plain, shapes)
    steps = []
    for model in (plain, kd):
        torch.manual_seed(0)
        # Two steps: what a family left behind in the first would show in the second.
        losses = [model.train()(**copy.deepcopy(data), mode="loss") for _ in range(2)]
        steps.append((losses, torch.get_rng_state()))
    assert torch.equal(steps[0][1], steps[1][1])
    for expected, losses in zip(steps[0][0], steps[1][0], strict=True):
        assert len(expected) >= 2 * 3  # layers, terms
        for term, value in expected.items():
            assert same_values(losses[term], value), term
        distil = set(losses) - set(expected)
        sets = ("specific",) if name == "detr" else ("specific", "general")
        assert distil == {
            f"{layer}kd_loss_{points}_{term}"
            for layer in ("d0.", "")
            for points in sets
            for term in ("cls", "l1", "giou")
        }
    assert same_values(dict(kd.state_dict()), dict(plain.state_dict()))
    assert_same_predictions(kd, plain, batch(plain, shapes, training=False))


def test_the_same_student_and_teacher_have_nothing_to_learn(name, pair, batch, shapes):
    cfg = calm(FAMILY_CONFIGS[name])
    heavy = dict(cls_weight=8.0, l1_weight=20.0, giou_weight=8.0)
    for alike in (True, False):
        kd = pair(cfg, cfg, distill_loss=heavy)
        data = batch(kd, shapes)
        other = kd.teacher if alike else noisy(cfg, seed=2)
        kd.student.load_state_dict(other.state_dict())
        losses = kd.train()(**data, mode="loss")
        last = {term: value for term, value in losses.items() if term.startswith("kd_loss")}
        assert len(last) == (3 if name == "detr" else 6)
        for term, value in last.items():
            assert value < 1e-3 if alike else value > 1e-2, term


def test_what_is_saved_is_the_plain_student(name, pair, batch):
    cfg = FAMILY_CONFIGS[name]
    kd = pair(cfg, cfg)
    kd.student.load_state_dict(noisy(cfg, seed=2).state_dict())
    plain = build(cfg)
    plain.load_state_dict(kd.state_dict(), strict=True)
    assert_same_predictions(kd, plain, batch(plain, training=False))


# --- recording and asking -------------------------------------------------------------------------


def test_what_is_known_of_a_detector(name, detector):
    family = build_family(detector)
    assert type(detector).__name__ == TYPES[name] == family.detector_type.__name__
    assert (family.content_dims, family.box_dims) == DIMS[name]
    assert (family.num_decoder_layers, family.num_queries) == (2, 12)
    assert family.has_background == (name == "detr")
    assert family.num_class_scores == 4 + family.has_background


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_asked_at_its_own_queries_it_repeats_itself(name, detector, batch, shapes, training):
    family, record = look(detector, batch(detector, shapes), training)
    queries = family.queries(record)
    assert queries.num_points == family.num_queries == 12
    with torch.no_grad():
        own, again = family.own_answer(record), family.answer(record, queries)
    classes = 5 if name == "detr" else 4
    assert own.cls_scores.shape == again.cls_scores.shape == (2, 2, 12, classes)
    assert own.boxes.shape == again.boxes.shape == (2, 2, 12, 4)
    assert own.has_background == again.has_background == (name == "detr")
    for said, repeated in zip(own[:2], again[:2]):
        torch.testing.assert_close(repeated, said, rtol=0, atol=1e-5)
        assert said.std(2).mean() > 3e-4  # at other queries it says something else


def test_its_own_answer_is_what_it_predicts(detector, batch, shapes):
    data = batch(detector, shapes, training=False)
    family, record = look(detector, data)
    with torch.no_grad():
        own = family.own_answer(record)
        predicted = detector(**copy.deepcopy(data), mode="tensor")
    for said, expected in zip(own[:2], predicted):
        assert torch.equal(said, expected)


def test_recording_changes_nothing_and_leaves_no_trace(detector, batch, shapes):
    data = batch(detector, shapes)
    plain = detector(**copy.deepcopy(data), mode="tensor")
    instance = sorted(vars(detector))
    family = build_family(detector)
    with family.recording() as record:
        recorded = detector(**copy.deepcopy(data), mode="tensor")
        assert sorted(vars(detector)) != instance
    assert sorted(vars(detector)) == instance
    assert set(record) == {"inputs", "outputs", "projections"}
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    with pytest.raises(ZeroDivisionError), family.recording():
        1 / 0  # noqa: B018
    assert sorted(vars(detector)) == instance


@pytest.mark.parametrize("fails", [False, True])
def test_asking_leaves_no_trace(detector, batch, monkeypatch, fails):
    family, record = look(detector, batch(detector), training=True)
    before, weights = state_of(detector), copy.deepcopy(detector.state_dict())
    inputs, outputs = (copy.deepcopy(record[part]) for part in ("inputs", "outputs"))
    if fails:
        monkeypatch.setattr(detector.decoder.layers[1], "forward", lambda *args, **kwargs: 1 / 0)
        before = state_of(detector)
        with pytest.raises(ZeroDivisionError):
            family.answer(record, some_points(family))
    else:
        family.answer(record, some_points(family))
    modules, cache = state_of(detector)
    assert modules == before[0]
    assert cache.keys() == before[1].keys()
    assert all(value is before[1][key] for key, value in cache.items())
    assert same_values(dict(detector.state_dict()), dict(weights))
    assert same_values(record["inputs"], inputs)
    assert same_values(record["outputs"], outputs)


def test_points_are_answered_as_at_inference(detector, batch):
    # Denoising and dense queries of the training step play no part.
    family, record = look(detector, batch(detector), training=True)
    points = some_points(family, 20)
    with torch.no_grad():
        while_training = family.answer(record, points)
        detector.eval()
        at_inference = family.answer(record, points)
    assert while_training.boxes.shape == (2, 2, 20, 4)
    for ours, theirs in zip(while_training[:2], at_inference[:2]):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# How many linear layers project the memory, or its positions, in two decoder layers.
PROJECTIONS = dict(dino=2, dab=6, deformable=2, refine=2, two_stage=2, conditional=6, ddq=2, detr=0)


def test_the_memory_is_projected_in_the_first_call_alone(name, detector, batch, monkeypatch):
    data, family, linear = batch(detector), build_family(detector), torch.nn.functional.linear
    seen = []
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, *more: seen.append(x) or linear(x, *more)
    )
    with torch.no_grad():
        record = family.look(data["inputs"], data["data_samples"])
        memories = [record["inputs"].get(part) for part in ("memory", "memory_pos")]

        def projections():
            return sum(any(x is memory for memory in memories) for x in seen)

        assert projections() == PROJECTIONS[name]
        for _ in range(2):
            family.answer(record, some_points(family))
        assert projections() == PROJECTIONS[name]


def test_answers_and_gradients_are_those_of_projecting_anew(detector, batch, monkeypatch):
    data, family = batch(detector, SHAPES["padded"]), build_family(detector)

    def answers_and_gradients():
        detector.zero_grad()
        with family.recording() as record:
            said = detector(**copy.deepcopy(data), mode="tensor")
        answers = [*said[:2], *family.answer(record, some_points(family))[:2]]
        sum(tensor.sin().sum() for tensor in answers).backward()
        return answers, [p.grad for p in detector.parameters() if p.grad is not None]

    answers, gradients = answers_and_gradients()
    monkeypatch.setattr(Family, "_projecting_once", lambda *_: contextlib.nullcontext())
    expected, their_gradients = answers_and_gradients()
    assert same_values(answers, expected)
    assert len(gradients) > 50
    largest = max(gradient.abs().max().item() for gradient in gradients)
    for ours, theirs in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * largest)
