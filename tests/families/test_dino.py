"""DINO as a family: recorded without a trace, asked at shared points and nowhere else."""

import copy

import pytest
import torch
from conftest import DINO_WIDTH, TEACHER, build, dino_config
from mmdet.models.detectors import (
    DDQDETR,
    DINO,
    DeformableDETR,
    FasterRCNN,
    GroundingDINO,
    RetinaNet,
)
from mmdet.models.layers import MLP
from mmdet.models.layers.transformer.utils import coordinate_to_encoding

from kd_detr_mmdet.families import DINOFamily, build_family, share_content
from kd_detr_mmdet.families.dino import from_official
from kd_detr_mmdet.points import DistillPointGenerator, DistillPoints
from kd_detr_mmdet.utils import ConfigError

ONE_SIZE = ((3, 64, 96), (3, 64, 96))
TWO_SIZES = ((3, 64, 96), (3, 48, 80))
WIDTH = max(DINO_WIDTH, 48)
WIDE = dict(
    TEACHER, width=WIDTH
)  # other width, depth, number of queries and levels than a student's


def detector(seed=0, **options):
    """A detector whose answers differ from query to query, as MMDetection's initial ones do not."""
    model = build(dino_config(**options))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def student():
    return detector()


@pytest.fixture(scope="module")
def teacher():
    return detector(seed=1, **WIDE)


def look(family, data):
    with torch.no_grad():
        return family.look(**as_inputs(data))


def as_inputs(data):
    return dict(batch_inputs=data["inputs"], batch_data_samples=data["data_samples"])


def general(num_points=7, seed=0, images=2):
    return DistillPointGenerator(num_points, seed=seed).general(images, (0,))


def with_content(points, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = *points.boxes.shape[:2], width
    return DistillPoints(points.boxes, torch.randn(shape, generator=generator))


def spread(answer):
    """How much an answer's logits differ from point to point: 0 would make a comparison empty."""
    return answer.cls_scores.std(2).mean().item()


# --- recording ------------------------------------------------------------------------------------


def test_recording_leaves_no_trace(student, batch):
    instance, on_class = dict(vars(student)), DINO.forward_decoder
    family = DINOFamily(student)
    look(family, batch(student))
    assert vars(student) == instance
    assert DINO.forward_decoder is on_class
    assert student.forward_decoder.__func__ is on_class


@pytest.mark.parametrize("within_the_call", [False, True])
def test_recording_leaves_no_trace_after_an_exception(student, batch, monkeypatch, within_the_call):
    data, family = batch(student), DINOFamily(student)
    if within_the_call:
        monkeypatch.setattr(student.decoder, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError), family.recording() as record:
        student.predict(**as_inputs(data)) if within_the_call else 1 / 0
    assert "forward_decoder" not in vars(student)
    assert not record


def test_recording_changes_nothing_that_the_detector_says(student, batch):
    data, family = batch(student), DINOFamily(student)
    with torch.no_grad():
        plain = student(**data, mode="tensor")
        with family.recording():
            recorded = student(**data, mode="tensor")
    for a, b in zip(plain, recorded):
        assert torch.equal(a, b)


def test_the_record_is_the_real_call_with_all_that_it_was_given(student, batch):
    data, family = batch(student), DINOFamily(student)
    calls = []
    handle = student.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    with handle:
        record = look(family, data)
    (call,) = calls
    # The decoder's names for the same objects.
    names = dict(value="memory", key_padding_mask="memory_mask", self_attn_mask="dn_mask")
    call.pop("reg_branches")
    assert {names.get(name, name) for name in call} == set(record["inputs"])
    for name, value in call.items():
        assert record["inputs"][names.get(name, name)] is value
    assert set(record["outputs"]) == {"hidden_states", "references"}


def test_the_last_call_is_remembered(student, batch):
    data, family = batch(student), DINOFamily(student)
    with torch.no_grad(), family.recording() as record:
        student(**data, mode="tensor")
        first = record["outputs"]
        data["inputs"] = data["inputs"].flip(0)
        student(**data, mode="tensor")
    assert not torch.equal(first["hidden_states"], record["outputs"]["hidden_states"])


def test_a_width_that_the_official_mmdet_cannot_decode_is_refused():
    model = build(dino_config(width=64))
    model.decoder.ref_point_head = MLP(2 * 64, 64, 64, 2)  # as the official one builds it
    with pytest.raises(ConfigError, match=r"width \(embed_dims\) of 256 only, not of 64: take 256"):
        DINOFamily(model)


def test_what_a_family_knows_of_its_detector(student, teacher):
    known = "content_dims", "num_decoder_layers", "num_class_scores", "num_queries", "box_dims"
    assert [getattr(DINOFamily(student), name) for name in known] == [DINO_WIDTH, 2, 4, 12, 4]
    assert [getattr(DINOFamily(teacher), name) for name in known] == [WIDTH, 3, 4, 16, 4]
    assert not DINOFamily(student).has_background


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [ONE_SIZE, TWO_SIZES])
def test_asked_at_its_own_queries_a_detector_repeats_itself(teacher, batch, shapes):
    family = DINOFamily(teacher)
    record = look(family, batch(teacher, shapes))
    assert (record["inputs"]["memory_mask"] is None) == (shapes is ONE_SIZE)
    queries = family.queries(record)
    assert queries.num_points == 16 and queries.content.shape == (2, 16, WIDTH)
    assert torch.equal(queries.content[1], teacher.query_embedding.weight)
    with torch.no_grad():
        own, again = family.own_answer(record), family.answer(record, queries)
    assert own.cls_scores.shape == (3, 2, 16, 4) and own.boxes.shape == (3, 2, 16, 4)
    assert spread(own) > 0.01
    for a, b in zip(own[:2], again[:2]):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("shapes", [ONE_SIZE, TWO_SIZES])
def test_points_decoded_apart_equal_points_under_an_isolating_mask(student, batch, shapes):
    family = DINOFamily(student)
    record = look(family, batch(student, shapes))
    queries, points = family.queries(record), with_content(general(), DINO_WIDTH)
    own = queries.num_points
    mask = torch.ones(own + 7, own + 7, dtype=torch.bool)  # True: may not be seen
    mask[:own, :own] = mask[own:, own:] = False
    together = dict(
        query=torch.cat([queries.content, points.content], 1),
        reference_points=torch.cat([queries.boxes, points.boxes], 1),
    )
    with torch.no_grad():
        isolated, mixed = (
            student.bbox_head(
                **student.forward_decoder(**{**record["inputs"], **together, "dn_mask": dn_mask})
            )
            for dn_mask in (mask, None)
        )
        own_answer, answer = family.own_answer(record), family.answer(record, points)
    for a, b, joint, unmasked in zip(own_answer, answer, isolated, mixed):
        assert torch.allclose(a, joint[:, :, :own], atol=1e-5)
        assert torch.allclose(b, joint[:, :, own:], atol=1e-5)
        assert not torch.allclose(b, unmasked[:, :, own:], atol=1e-3)  # self-attention does couple


def test_asking_leaves_the_record_as_it_was(student, batch):
    family = DINOFamily(student)
    record = look(family, batch(student))
    before = copy.deepcopy(dict(record))
    with torch.no_grad():
        family.answer(record, general())
    for part in ("inputs", "outputs"):
        assert set(record[part]) == set(before[part])
        for name, value in before[part].items():
            now = record[part][name]
            same = torch.equal if torch.is_tensor(value) else _all_equal
            assert same(now, value), name


def _all_equal(a, b):
    return a == b if a is None else all(torch.equal(x, y) for x, y in zip(a, b))


def test_one_set_of_points_does_not_move_the_other(kd_config, batch):
    def specific(**points):
        model = build(kd_config(points=points))
        torch.manual_seed(0)
        losses = model.train()(**batch(model), mode="loss")
        return {name: value for name, value in losses.items() if "kd_loss_specific" in name}

    alone = specific(num_general=0)
    assert len(alone) == 6
    for points in (dict(num_general=10, seed=0), dict(num_general=33, seed=1)):
        for name, value in specific(**points).items():
            assert torch.equal(value, alone[name]), name


@pytest.mark.parametrize("as_many_as_all_queries", [False, True])
def test_denoising_queries_play_no_part_at_points(batch, as_many_as_all_queries):
    student = detector().train()
    family = DINOFamily(student)
    answers = []
    for num_items in ([1, 2], [4, 1]):  # other ground truth, other denoising queries
        data = batch(student, TWO_SIZES, num_items=num_items)
        data["inputs"] = torch.ones_like(data["inputs"]) * torch.linspace(-1, 1, 96)
        with family.recording() as record:
            student.loss(**as_inputs(data))
        dn_mask = record["inputs"]["dn_mask"]
        assert dn_mask.any() and len(dn_mask) > family.num_queries
        # As many points as the mask has rows: there a mask left in would raise no error.
        points = general(len(dn_mask) if as_many_as_all_queries else 7)
        with torch.no_grad():
            answer = family.answer(record, points)
            inputs = dict(record["inputs"], dn_mask=None)
            inputs.update(reference_points=points.boxes, query=family.content_at(points, record))
            expected = student.bbox_head(**student.forward_decoder(**inputs))
        assert answer.boxes.shape == (2, 2, points.num_points, 4)
        for a, b in zip(answer, expected):
            assert torch.equal(a, b)
        answers.append(answer)
    if not as_many_as_all_queries:
        assert spread(answers[0]) > 0.01
        for a, b in zip(*(said[:2] for said in answers)):
            assert torch.equal(a, b)


def test_a_students_answer_teaches_its_whole_network_but_not_its_own_queries(batch):
    student = detector().train()
    family = DINOFamily(student, blank_content="mean")
    with family.recording() as record:
        student.loss(**as_inputs(batch(student)))
    answer = family.answer(record, general())
    (answer.cls_scores.square().mean() + answer.boxes.mean()).backward()
    # Learnt queries would pull the shared content apart between student and teacher.
    assert student.query_embedding.weight.grad is None
    for name in ("backbone.conv1", "neck.convs.0.conv", "encoder.layers.0", "decoder.layers.0"):
        gradients = [p.grad for p in student.get_submodule(name).parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients), name


def test_more_queries_than_places_in_a_small_image(batch):
    # DINO's top-k then takes places in the padding, whose proposals are infinite: boxes of 1.0.
    shapes = ((3, 128, 128), (3, 32, 32))
    student, teacher = detector(num_queries=60), detector(1, num_queries=60, levels=3, width=WIDTH)
    families = DINOFamily(student), DINOFamily(teacher)
    share_content(*families, "auto")
    data = batch(student, shapes)
    records = [look(family, data) for family in families]
    specific = families[1].queries(records[1])
    assert (specific.boxes == 1).any()
    for points in (specific, general()):
        for family, record in zip(families, records):
            with torch.no_grad():
                answer = family.answer(record, points)
            assert all(t.isfinite().all() for t in answer[:2])
            assert answer.boxes.min() >= 0 and answer.boxes.max() <= 1


# --- the boxes ------------------------------------------------------------------------------------


def looked_at(family, record, points):
    """The boxes that the first layer's cross-attention gets, before the share of padding."""
    seen = []
    attention = family.detector.decoder.layers[0].cross_attn
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["reference_points"]), with_kwargs=True
    )
    with hook, torch.no_grad():
        family.answer(record, points)
    (references,) = seen
    ratios = record["inputs"]["valid_ratios"].repeat(1, 1, 2)[:, None]  # (bs, 1, levels, 4)
    return references, references / ratios


@pytest.mark.parametrize("shapes", [ONE_SIZE, TWO_SIZES])
@pytest.mark.parametrize("kind", ["general", "specific"])
def test_both_models_look_at_the_same_boxes(student, teacher, batch, shapes, kind):
    families = DINOFamily(student), DINOFamily(teacher)
    share_content(*families, "auto")
    data = batch(student, shapes)
    records = [look(family, data) for family in families]
    points = general() if kind == "general" else families[1].queries(records[1])
    assert points.boxes.min() >= 0 and points.boxes.max() <= 1
    assert points.boxes.std() > 0.05
    for family, record, levels in zip(families, records, (2, 3)):
        raw, boxes = looked_at(family, record, points)
        assert raw.shape == (2, points.num_points, levels, 4)
        assert (shapes is ONE_SIZE) == torch.equal(raw, boxes)  # padded images take part
        # A second sigmoid on the way would squeeze all of them into [0.5, 0.73].
        assert torch.allclose(boxes, points.boxes[:, :, None].expand_as(boxes), atol=1e-6)


@pytest.mark.parametrize(
    "move",
    [lambda boxes: boxes.sigmoid(), lambda boxes: boxes + 1e-4, lambda boxes: boxes[:, 1:]],
    ids=["sigmoid", "a little", "fewer"],
)
def test_a_detector_that_moves_the_boxes_is_stopped(student, batch, move):
    class Moving(DINO):
        pass

    moving = copy.deepcopy(student)
    moving.__class__ = Moving
    family = build_family(moving)
    record = look(family, batch(moving))

    def forward_decoder(self, query, reference_points, **inputs):
        boxes = move(reference_points)
        query = query[:, -boxes.size(1) :]
        return DINO.forward_decoder(self, query=query, reference_points=boxes, **inputs)

    Moving.forward_decoder = forward_decoder
    with pytest.raises(RuntimeError, match="Moving did not look at the distillation points' boxes"):
        family.answer(record, general())


# --- the content ----------------------------------------------------------------------------------


def test_the_content_changes_the_answer(student, batch):
    family = DINOFamily(student)
    record = look(family, batch(student))
    points = general()
    with torch.no_grad():
        blank = family.answer(record, points)
        filled = family.answer(record, with_content(points, DINO_WIDTH))
        family.takes_content = False
        ignored = family.answer(record, with_content(points, DINO_WIDTH))
    assert not torch.allclose(blank.cls_scores, filled.cls_scores, atol=1e-2)
    assert torch.equal(blank.cls_scores, ignored.cls_scores)


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(blank_content="ones"), "blank_content"),
        (dict(blank_content=None), "blank_content"),
        (dict(blank_content="learnt"), "blank_content"),
    ],
)
def test_bad_options_are_named(student, options, named):
    with pytest.raises(ConfigError, match=f"^{named} must be one of"):
        build_family(student, **options)


# --- which detectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forward_transformer", "pre_decoder", "forward_decoder"])
def test_a_dino_that_handles_queries_its_own_way_is_refused(student, method):
    other = type("OwnWay", (DINO,), {method: lambda self, *args, **kwargs: None})
    assert not DINOFamily.supports(other)
    model = copy.copy(student)
    model.__class__ = other
    with pytest.raises(ConfigError, match="OwnWay cannot be distilled"):
        build_family(model)


def test_which_of_mmdets_detectors_are_dino():
    plain = type("Plain", (DINO,), {"predict": lambda self: None})
    assert DINOFamily.supports(DINO) and DINOFamily.supports(plain)
    for other in (DDQDETR, GroundingDINO, DeformableDETR, FasterRCNN):
        assert not DINOFamily.supports(other), other


def test_another_detector_is_refused_by_name(student):
    assert isinstance(build_family(student), DINOFamily)
    retinanet = RetinaNet.__new__(RetinaNet)
    with pytest.raises(ConfigError) as error:
        build_family(retinanet)
    assert "RetinaNet cannot be distilled" in str(error.value)
    assert "DINO" in str(error.value) and "\n" not in str(error.value)


def test_weights_of_the_official_dino_answer_alike():
    """mmdet 3.3 encodes a box by 4 x 128 numbers, the maintained fork by 4 x width."""
    detector = build(dino_config(width=256))
    key = "decoder.ref_point_head.layers.0.weight"
    own = detector.state_dict()
    if own[key].shape != (256, 1024):
        pytest.skip("this is the official mmdet")
    official = {**own, key: torch.randn(256, 512)}
    wider = from_official(official, detector)
    boxes = torch.rand(2, 5, 4)
    expected = coordinate_to_encoding(boxes, num_feats=128) @ official[key].T
    answered = coordinate_to_encoding(boxes, num_feats=256) @ wider[key].T
    assert torch.allclose(answered, expected, atol=1e-4)
    detector.load_state_dict(wider)
    assert from_official(own, detector) is own
