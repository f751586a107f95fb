"""Faster, Cascade and Mask R-CNN as students: asked at boxes, taught, and otherwise untouched."""

import copy

import pytest
import torch
from conftest import (
    FAMILY_CONFIGS,
    TEACHER,
    build,
    detr_config,
    dino_config,
    noisy,
    small_backbone,
    two_stage_config,
)
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.structures import InstanceData

from kd_detr_mmdet.families import TwoStageFamily, build_family
from kd_detr_mmdet.families.base import Record
from kd_detr_mmdet.losses.class_bridge import CLASS_BRIDGES
from kd_detr_mmdet.points import CoordinateSampler, DistillPoints
from kd_detr_mmdet.points.coordinate_sampler import BOXES
from kd_detr_mmdet.points.coordinates import pixel_corners, relative_boxes
from kd_detr_mmdet.utils import ConfigError

KINDS = dict(faster_rcnn="FasterRCNN", cascade_rcnn="CascadeRCNN", mask_rcnn="MaskRCNN")
SHAPES = ((3, 60, 90), (3, 48, 80))  # in a batch both are padded to 64 x 96
SIZES = [list(shape[1:]) for shape in SHAPES]
DINO = dino_config(**TEACHER)
ALL_SETS = dict(type="CoordinateSampler", max_points=20, num_general=5, specific=True)
SETS, TERMS = ("roi", "specific", "general"), ("cls", "l1", "giou")
LAST_KEYS = {f"kd_loss_{points}_{term}" for points in SETS for term in TERMS}


def demo_batch(model, num_items=(3, 2), training=True):
    """Preprocessed inputs with masks, of two sizes."""
    shapes = [list(shape) for shape in SHAPES]
    data = demo_mm_inputs(2, shapes, num_items=list(num_items), num_classes=4, with_mask=True)
    data = model.data_preprocessor(data, training)
    assert data["inputs"].shape[-2:] == (64, 96)
    return data


def losses_of(model, data, seed=0):
    torch.manual_seed(seed)
    return model.train()(**copy.deepcopy(data), mode="loss")


def kd_terms(losses):
    return {name: value for name, value in losses.items() if "kd_loss" in name}


def same_values(ours, theirs):
    """Whether two losses, tensors or lists of them, are bit-equal."""
    if torch.is_tensor(ours):
        return torch.equal(ours, theirs)
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def look(detector):
    """A detector in eval mode, its family and what it knows of a batch, without a loss."""
    data = demo_batch(detector.eval(), training=False)
    with torch.no_grad():
        record = Record(features=detector.extract_feat(data["inputs"]), shapes=SIZES)
    return build_family(detector), record, data["data_samples"]


def some_points(number=9):
    """Boxes within the image, of (2, number, 4)."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.rand(2, 2, number, 2, generator=generator).sort(0).values
    return DistillPoints(torch.cat([(low + high) / 2, high - low], -1))


def in_pixels(boxes):
    """Boxes (2, M, 4) of both images to pixels, one tensor for each."""
    return [pixel_corners(b, size) for b, size in zip(boxes, SIZES)]


# --- the student's own training -------------------------------------------------------------------


@pytest.mark.parametrize("kind, boxes", zip(KINDS, BOXES), ids=KINDS)
def test_own_losses_are_bit_identical_to_plain_mmdet(pair, kind, boxes):
    cfg = two_stage_config(kind)
    kd, plain = pair(cfg, DINO, points=dict(ALL_SETS, boxes=boxes)), noisy(cfg, seed=2)
    kd.load_state_dict(plain.state_dict())
    data, steps = demo_batch(plain), []
    for model in (plain, kd):
        torch.manual_seed(0)
        losses = [model.train()(**copy.deepcopy(data), mode="loss") for _ in range(2)]
        steps.append((losses, torch.get_rng_state()))
    assert torch.equal(steps[0][1], steps[1][1])
    for expected, losses in zip(steps[0][0], steps[1][0], strict=True):
        assert len(expected) == dict(faster_rcnn=5, cascade_rcnn=11, mask_rcnn=6)[kind]
        for term, value in expected.items():
            assert same_values(losses[term], value), term
        layers = ("d0.", "d1.", "") if kind == "cascade_rcnn" else ("",)
        distil = {f"{layer}{key}" for layer in layers for key in LAST_KEYS}
        assert set(losses) - set(expected) == distil == set(kd_terms(losses))
        assert all(losses[term].isfinite() and losses[term] > 0 for term in distil)
    # The running statistics of batch norm as well.
    for name, value in plain.state_dict().items():
        assert torch.equal(kd.state_dict()[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_the_plain_student(pair, kind):
    cfg = two_stage_config(kind)
    kd, plain = pair(cfg, DINO, points=ALL_SETS), build(cfg)
    kd.student.load_state_dict(noisy(cfg, seed=2).state_dict())
    assert list(kd.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(kd.state_dict(), strict=True)
    data = demo_batch(plain, training=False)
    ours, theirs = (m.eval()(**copy.deepcopy(data), mode="predict") for m in (kd, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine.pred_instances) > 0
        for field in mine.pred_instances.keys():  # noqa: SIM118
            assert torch.equal(mine.pred_instances[field], other.pred_instances[field]), field


# --- recording ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_of_a_student(kind):
    family = build_family(build(two_stage_config(kind)))
    assert type(family) is TwoStageFamily
    assert type(family.detector).__name__ == KINDS[kind]
    assert family.num_decoder_layers == len(family.box_heads) == (3 if "cascade" in kind else 1)
    assert (family.num_class_scores, family.has_background) == (5, True)
    assert (family.box_dims, family.content_dims, family.num_queries) == (4, 0, 0)
    assert not family.takes_content


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_recording_leaves_no_trace(kind, fails, monkeypatch):
    detector = build(two_stage_config(kind)).train()
    data = demo_batch(detector)
    if fails:
        monkeypatch.setattr(detector.rpn_head, "loss_and_predict", lambda *a, **k: 1 / 0)
    parts = detector, detector.roi_head
    before = [dict(vars(part)) for part in parts]
    family = build_family(detector)
    with pytest.raises(ZeroDivisionError), family.recording() as record:
        assert all(vars(part).keys() > b.keys() for part, b in zip(parts, before))
        detector.loss(data["inputs"], data["data_samples"])
        1 / 0  # noqa: B018
    for part, attributes in zip(parts, before):
        now = dict(vars(part))
        now["current_stage"] = attributes.get("current_stage")  # mmdet's own note, of a cascade
        attributes = dict(attributes, current_stage=attributes.get("current_stage"))
        assert now.keys() == attributes.keys()
        assert all(now[name] is value for name, value in attributes.items())
    parts = {"features"} if fails else {"features", "shapes", "proposals", "rois"}
    if not fails and kind != "cascade_rcnn":
        parts.add("predicted")
    assert set(record) == parts


@pytest.mark.parametrize("kind", KINDS)
def test_the_boxes_of_a_recorded_loss(kind, monkeypatch):
    detector = noisy(two_stage_config(kind)).train()
    data, proposals, rois = demo_batch(detector), [], []
    propose = detector.rpn_head.loss_and_predict

    def loss_and_predict(*args, **kwargs):
        losses, found = propose(*args, **kwargs)
        proposals.extend(result.bboxes.clone() for result in found)
        return losses, found

    monkeypatch.setattr(detector.rpn_head, "loss_and_predict", loss_and_predict)
    extractor = detector.roi_head.bbox_roi_extractor
    first = extractor[0] if kind == "cascade_rcnn" else extractor
    first.register_forward_pre_hook(lambda module, inputs: rois.append(inputs[1]))
    family = build_family(detector)
    with family.recording() as record:
        detector.loss(data["inputs"], data["data_samples"])

    assert record["shapes"] == SIZES
    found = family.boxes(record, "proposals")
    for image, size in enumerate(SIZES):
        assert len(found[image]) == len(proposals[image]) > 1
        assert torch.equal(found[image], relative_boxes(proposals[image], size))
    found = family.boxes(record, "sampled")
    sampled = [rois[0][rois[0][:, 0] == image, 1:] for image in range(2)]
    for image, size in enumerate(SIZES):
        assert len(found[image]) == len(sampled[image]) == 16
        assert torch.equal(found[image], relative_boxes(sampled[image], size))
        # Ground truth is sampled as well, at the very same numbers.
        truth = relative_boxes(data["data_samples"][image].gt_instances.bboxes, size)
        assert (found[image][:, None] == truth).all(-1).any()
    found = family.boxes(record, "anchors")
    for image, (height, width) in enumerate(SIZES):
        # Three on each cell of the padded image: 16 x 24, 8 x 12, 4 x 6, 2 x 3 and 1 x 2.
        assert found[image].shape == (3 * (384 + 96 + 24 + 6 + 2), 4)
        corners = pixel_corners(found[image], (height, width))
        # The second of the first cell is 32 x 32 around the origin, the next one's 4 pixels off.
        for number, x in ((1, 0.0), (4, 4.0)):
            expected = [x - 16, -16.0, x + 16, 16.0]
            assert corners[number].tolist() == pytest.approx(expected, abs=1e-3)
    assert not any(b.requires_grad for kind in BOXES for b in family.boxes(record, kind))


# --- answers --------------------------------------------------------------------------------------


def predicted(detector, record, samples, boxes):
    """Raw scores and boxes of mmdet's own test path at given RoIs, for each image."""
    proposals = [InstanceData(bboxes=corners) for corners in in_pixels(boxes)]
    metas = [sample.metainfo for sample in samples]
    with torch.no_grad():
        found = detector.roi_head.predict_bbox(
            record["features"], metas, proposals, rcnn_test_cfg=None, rescale=False
        )
    return [result.scores for result in found], [result.bboxes for result in found]


@pytest.mark.parametrize("agnostic", [False, True], ids=["of each class", "of any class"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_what_the_test_path_predicts_at_the_box(kind, agnostic):
    cfg = two_stage_config(kind, agnostic=agnostic)
    if kind == "cascade_rcnn":
        for head in cfg.roi_head.bbox_head:
            head.reg_class_agnostic = agnostic
    detector = noisy(cfg)
    family, record, samples = look(detector)
    points = some_points()
    scores, boxes = predicted(detector, record, samples, points.boxes)
    labels = torch.randint(4, (2, 9), generator=torch.Generator().manual_seed(1))
    answers = dict()
    for name, asked in (("asked", labels), ("found", None)):
        with torch.no_grad():
            answers[name] = family.answer(record, points, asked)
        stages = 3 if kind == "cascade_rcnn" else 1
        assert answers[name].cls_scores.shape == (stages, 2, 9, 5)
        assert answers[name].boxes.shape == (stages, 2, 9, 4)
        assert answers[name].has_background
        # At inference a cascade takes the mean of its stages' logits.
        mean = answers[name].cls_scores.mean(0).softmax(-1)
        wanted = labels if asked is not None else answers[name].cls_scores[-1, ..., :-1].argmax(-1)
        for image in range(2):
            torch.testing.assert_close(mean[image], scores[image], rtol=0, atol=1e-5)
            all_boxes = boxes[image].view(9, -1, 4)
            assert all_boxes.size(1) == (1 if agnostic else 4)
            which = torch.zeros(9, dtype=torch.long) if agnostic else wanted[image]
            expected = relative_boxes(all_boxes[torch.arange(9), which], SIZES[image])
            got = answers[name].boxes[-1, image]
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert mean.std(1).mean() > 1e-3  # it does not say the same at every box
    same = torch.equal(answers["asked"].boxes, answers["found"].boxes)
    assert same == agnostic
    assert torch.equal(answers["asked"].cls_scores, answers["found"].cls_scores)


@pytest.mark.parametrize("max_points, fill", [(20, 4), (5, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_loss_has_said_of_a_roi_is_not_asked_again(kind, max_points, fill):
    detector = noisy(two_stage_config(kind)).train()
    family, data, seen = build_family(detector), demo_batch(detector), []
    with family.recording() as record:
        detector.loss(data["inputs"], data["data_samples"])
    extractor = detector.roi_head.bbox_roi_extractor
    first = extractor[0] if kind == "cascade_rcnn" else extractor
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1][:, 1:]))
    sampler = CoordinateSampler(max_points=max_points, seed=0)
    points = sampler.sample(family.boxes(record, "sampled"), [torch.zeros(0, 4)] * 2, (0, 0))
    assert (points.rois < 0).sum(1).tolist() == [fill, fill]
    assert points.rois[1, 0] != points.rois[0, 0]  # each image has its own draw
    labels = torch.randint(4, (2, max_points), generator=torch.Generator().manual_seed(1))
    found, gradients = [], []
    for asked in (points, DistillPoints(points.boxes)):
        answer = family.answer(record, asked, labels)
        found.append(answer[:2])
        weights = torch.linspace(-1, 1, answer.boxes.numel()).view_as(answer.boxes)
        objective = (answer.boxes * weights).sum() + answer.cls_scores[..., 0].sum()
        parameters = list(detector.neck.parameters()) + list(family.box_heads[0].parameters())
        gradients.append(torch.autograd.grad(objective, parameters, retain_graph=True))
    numbers = [len(rois) for rois in seen]
    again = [2 * fill] if fill else []  # those alone that are no RoIs
    assert numbers == ([2 * max_points] if kind == "cascade_rcnn" else again) + [2 * max_points]
    for ours, theirs in zip(found[0] + gradients[0], found[1] + gradients[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    # The points are these RoIs, in pixels.
    for image, which in enumerate(points.rois):
        rois = record["rois"][record["rois"][:, 0] == image, 1:]
        places = seen[-1].view(2, max_points, 4)[image]
        torch.testing.assert_close(places[which >= 0], rois[which[which >= 0]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn"])
def test_a_sampler_that_asks_before_the_loss_does(kind, monkeypatch):
    """OHEM predicts at all candidates of an image, without gradient, to find the hard ones."""
    cfg, sampled = two_stage_config(kind), []
    for stage in cfg.train_cfg.rcnn if kind == "cascade_rcnn" else [cfg.train_cfg.rcnn]:
        stage.sampler.type = "OHEMSampler"
    detector = noisy(cfg).train()
    family, data = build_family(detector), demo_batch(detector)
    get_targets = family.box_heads[0].get_targets

    def noted(results, *args, **kwargs):
        sampled.extend(result.priors for result in results)
        return get_targets(results, *args, **kwargs)

    monkeypatch.setattr(family.box_heads[0], "get_targets", noted)
    with family.recording() as record:
        detector.loss(data["inputs"], data["data_samples"])
    assert [len(boxes) > 1 for boxes in sampled] == [True, True]
    for ours, theirs, size in zip(family.boxes(record, "sampled"), sampled, SIZES, strict=True):
        assert torch.equal(ours, relative_boxes(theirs, size))
    assert all(said.requires_grad for said in record.get("predicted", ()))


@pytest.mark.parametrize("points", [dict(num_general=30), dict(type="CoordinateSampler")])
def test_batch_norms_of_a_box_head_learn_nothing_at_points(pair, points):
    student = two_stage_config("faster_rcnn")
    student.roi_head.bbox_head.update(
        type="Shared4Conv1FCBBoxHead", conv_out_channels=8, norm_cfg=dict(type="BN")
    )
    model = pair(student, DINO, points=points)
    plain = build(student)
    plain.load_state_dict(model.state_dict())
    data = demo_batch(model)
    ours, theirs = losses_of(model, data), losses_of(plain, data)
    assert all(same_values(ours[name], theirs[name]) for name in theirs)
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    norms = [m for m in model.student.roi_head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 4 and all(norm.training for norm in norms)


@pytest.mark.parametrize("agnostic", [False, True])
def test_each_stage_of_a_cascade_looks_where_the_one_before_has_found_something(agnostic):
    cfg = two_stage_config("cascade_rcnn")
    for head in cfg.roi_head.bbox_head:
        head.reg_class_agnostic = agnostic
    detector = noisy(cfg)
    family, record, _ = look(detector)
    seen = []
    for extractor in detector.roi_head.bbox_roi_extractor:
        extractor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    points = some_points()
    answer = family.answer(record, points)  # boxes of the classes that each stage finds
    assert len(seen) == 3
    expected = torch.cat(in_pixels(points.boxes))
    for stage, rois in enumerate(seen):
        assert rois[:, 0].tolist() == [0] * 9 + [1] * 9
        torch.testing.assert_close(rois[:, 1:], expected, rtol=0, atol=1e-3)
        assert not rois.requires_grad  # as at training, a stage does not learn by the next one
        refined = torch.cat(in_pixels(answer.boxes[stage]))
        assert (refined - expected).abs().mean() > 0.1
        expected = refined
    # To ask for the boxes of another class does not lead the stages elsewhere.
    seen.clear()
    found = answer.cls_scores[..., :-1].argmax(-1)
    other = family.answer(record, points, (found[0] + 1) % 4)
    torch.testing.assert_close(seen[2][:, 1:], torch.cat(in_pixels(answer.boxes[1])))
    assert torch.equal(other.boxes, answer.boxes) == agnostic


def test_the_student_is_asked_for_the_class_that_the_teacher_sees(pair):
    kd, asked, told = pair(two_stage_config(), DINO, points=ALL_SETS), [], []
    ask = kd.student_family.answer
    teach, own = kd.teacher_family.answer, kd.teacher_family.own_answer
    kd.student_family.answer = lambda r, p, labels, _: asked.append(labels) or ask(r, p, labels)
    kd.teacher_family.answer = lambda r, p, *_: told.append(teach(r, p)) or told[-1]
    kd.teacher_family.own_answer = lambda r: told.append(own(r)) or told[-1]
    losses_of(kd, demo_batch(kd))
    assert len(asked) == len(told) == 3
    for labels, answer in zip(asked, told):
        assert torch.equal(labels, answer.cls_scores[-1].argmax(-1))
    assert len(torch.cat([labels.flatten() for labels in asked]).unique()) > 1


def test_no_queries_to_ask_about():
    family = build_family(build(two_stage_config()))
    with pytest.raises(NotImplementedError):
        family.queries(Record())
    with pytest.raises(NotImplementedError):
        family.decode(Record(), torch.zeros(1, 1, 4), None)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_rpn_and_mask_head_learn_from_the_teacher(pair, kind):
    kd = pair(two_stage_config(kind), DINO, points=ALL_SETS)
    kd.student.load_state_dict(noisy(two_stage_config(kind), seed=2).state_dict())
    data = demo_batch(kd)
    for points in SETS:
        kd.zero_grad()
        distil = kd_terms(losses_of(kd, data))
        sum(value for name, value in distil.items() if points in name).backward()
        taught = set()
        for name, parameter in kd.student.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                if parameter.grad.any():
                    taught.add(name)
        parts = {".".join(name.split(".")[:2]) for name in taught}
        assert {"backbone.conv1", "backbone.layer4", "neck.lateral_convs"} <= parts, points
        assert {name.split(".")[0] for name in taught} == {"backbone", "neck", "roi_head"}
        heads = {n for n, p in kd.student.named_parameters() if "roi_head.bbox_head" in n}
        assert heads == {name for name in taught if name.startswith("roi_head.")}, points
    assert all(parameter.grad is None for parameter in kd.teacher.parameters())


def test_distillation_brings_the_student_nearer_to_the_teacher(pair):
    heavy = dict(cls_weight=8.0, l1_weight=20.0, giou_weight=8.0)
    points = dict(ALL_SETS, boxes="anchors", seed=0)
    kd = pair(two_stage_config(), DINO, points=points, distill_loss=heavy)
    data = demo_batch(kd)
    optimizer = torch.optim.Adam(kd.student.parameters(), lr=1e-2)
    totals = []
    for _ in range(12):
        kd._last_step = (-1, 0)  # the same points once more
        total = sum(kd_terms(losses_of(kd, data)).values())
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert totals[-1] < 0.8 * totals[0]


# --- teachers and bridges -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FAMILY_CONFIGS if name != "detr"])
def test_every_family_that_can_be_asked_at_a_box_teaches(pair, name):
    bridge = CLASS_BRIDGES[list(FAMILY_CONFIGS).index(name) % 3]
    kd = pair(
        two_stage_config(),
        FAMILY_CONFIGS[name],
        points=ALL_SETS,
        distill_loss=dict(class_bridge=bridge),
    )
    distil = kd_terms(losses_of(kd, demo_batch(kd)))
    assert set(distil) == LAST_KEYS
    assert all(value.isfinite() and value > 0 for value in distil.values())
    sum(distil.values()).backward()
    gradients = [p.grad for p in kd.student.backbone.parameters()]
    assert all(grad.isfinite().all() for grad in gradients) and any(g.any() for g in gradients)


def test_each_bridge_teaches_other_scores_and_the_same_boxes(pair):
    kd = pair(two_stage_config(), DINO, points=dict(ALL_SETS, seed=0))
    data, found = demo_batch(kd), []
    for bridge in CLASS_BRIDGES:
        kd.distill_loss.class_bridge = bridge
        kd._last_step = (-1, 0)
        found.append(kd_terms(losses_of(kd, data)))
    for name in LAST_KEYS:
        values = {round(losses[name].item(), 5) for losses in found}
        assert len(values) == (3 if name.endswith("cls") else 1), name


@pytest.mark.parametrize("boxes", BOXES)
def test_the_ground_truth_among_the_points(pair, boxes):
    options = dict(boxes=boxes, add_ground_truth=True, foreground_fraction=0.5)
    kd = pair(
        two_stage_config(), DINO, points=dict(type="CoordinateSampler", max_points=12, **options)
    )
    asked, answer = [], kd.student_family.answer
    kd.student_family.answer = lambda r, p, labels, _: asked.append(p) or answer(r, p, labels)
    data = demo_batch(kd)
    losses_of(kd, data)
    (points,) = asked
    assert points.boxes.shape == (2, 12, 4)
    assert (points.boxes >= 0).all() and (points.boxes <= 1).all()
    for image, sample in zip(points.boxes, data["data_samples"]):
        truth = relative_boxes(sample.gt_instances.bboxes, sample.img_shape)
        torch.testing.assert_close(image[: len(truth)], truth)
        # The loss samples the ground truth, too; it is no point twice.
        assert (torch.cdist(image, truth) < 1e-4).sum() == len(truth)


def test_mixed_precision(pair):
    kd = pair(two_stage_config(), DINO, points=dict(ALL_SETS, boxes="anchors", seed=0))
    data = demo_batch(kd)
    full = kd_terms(losses_of(kd, data))
    kd._last_step = (-1, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = kd_terms(losses_of(kd, data))
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[name], rtol=0.1, atol=0.1)
    sum(half.values()).backward()
    assert all(p.grad.isfinite().all() for p in kd.parameters() if p.grad is not None)


# --- little to go by ------------------------------------------------------------------------------


def proposing(kind, **options):
    cfg = two_stage_config(kind)
    cfg.train_cfg.rpn_proposal.update(options)
    return cfg


NOTHING = dict(min_bbox_size=1000)
ONE = dict(max_per_img=1)


@pytest.mark.parametrize(
    "boxes, options, items",
    [
        ("sampled", {}, (3, 0)),
        ("sampled", ONE, (0, 0)),
        ("sampled", NOTHING, (3, 0)),
        ("sampled", NOTHING, (0, 0)),
        ("proposals", ONE, (3, 0)),
        ("proposals", NOTHING, (0, 0)),
        ("anchors", NOTHING, (0, 0)),
    ],
)
def test_images_without_boxes_and_an_rpn_of_few_words(pair, boxes, options, items):
    cfg = proposing("faster_rcnn", **options)
    kd = pair(cfg, DINO, points=dict(ALL_SETS, boxes=boxes, add_ground_truth=True))
    plain = build(cfg)
    kd.load_state_dict(plain.state_dict())
    data = demo_batch(kd, items)
    with build_family(plain).recording() as record:
        expected = losses_of(plain, data)
    numbers = [len(proposals) for proposals in record["proposals"]]
    assert (max(numbers) == 0) == (options is NOTHING)
    assert options is not ONE or numbers == [1, 1]
    losses = losses_of(kd, data)
    for term, value in expected.items():
        assert same_values(losses[term], value), term
    distil = kd_terms(losses)
    assert set(distil) == LAST_KEYS
    assert all(value.isfinite() and value > 0 for value in distil.values())
    kd.parse_losses(losses)[0].backward()
    gradients = {name: p.grad for name, p in kd.student.named_parameters()}
    # As DDP without find_unused_parameters needs it.
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())


@pytest.mark.parametrize("options", [NOTHING, ONE], ids=["nothing", "one"])
@pytest.mark.parametrize("kind", ["cascade_rcnn", "mask_rcnn"])
def test_an_rpn_of_few_words_in_the_other_kinds(pair, kind, options):
    kd = pair(proposing(kind, **options), DINO, points=ALL_SETS)
    distil = kd_terms(losses_of(kd, demo_batch(kd, (1, 1))))
    assert len(distil) == (27 if kind == "cascade_rcnn" else 9)
    assert all(value.isfinite() and value > 0 for value in distil.values())


# --- what cannot be distilled ---------------------------------------------------------------------


def refused(student, teacher=None, **options):
    """What the user is told."""
    teacher = dict(config=teacher or dino_config(), checkpoint=None)
    cfg = dict(type="KDDETR", student=student, teacher=teacher)
    with pytest.raises(ConfigError) as error:
        MODELS.build(copy.deepcopy({**cfg, **options}))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_other_numbers_of_classes():
    message = refused(two_stage_config(num_classes=3), dino_config(num_classes=7))
    assert "the student scores 3 and the teacher 7" in message
    assert "set bbox_head.num_classes of both" in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("student", ["two stages", "dino"])
def test_no_two_stage_detector_teaches(kind, student):
    student = two_stage_config(kind) if student == "two stages" else dino_config()
    message = refused(student, two_stage_config(kind))
    assert message.startswith(f"{KINDS[kind]} cannot teach")
    assert "take one of mmdet's DETRs as teacher" in message


@pytest.mark.parametrize("points", [dict(type="CoordinateSampler"), dict(num_general=0), dict()])
def test_detr_cannot_be_asked_at_a_box(points):
    message = refused(two_stage_config(), detr_config(), points=points)
    assert message.startswith("DETR's queries have no coordinates")


def test_no_queries_to_pair():
    message = refused(two_stage_config(), points=dict(type="QueryPairing", strategy="inconsistent"))
    assert "points.type='QueryPairing' pairs queries, and FasterRCNN has none" in message
    assert "use 'CoordinateSampler' or 'DistillPointGenerator'" in message


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_no_rois_to_sample(name):
    cfg = FAMILY_CONFIGS[name]
    message = refused(cfg, cfg, points=dict(type="CoordinateSampler"))
    assert "points.type='CoordinateSampler' takes the boxes of a two-stage student" in message
    assert f"{cfg.type} is none: use 'DistillPointGenerator'" in message


def test_sets_by_name():
    message = refused(
        two_stage_config(),
        points=dict(type="CoordinateSampler"),
        distill_loss=dict(set_weights=dict(general=0.5)),
    )
    assert "distill_loss.set_weights names 'general', but the points' sets are 'roi'" in message


def test_the_teachers_content_says_nothing_to_a_roi_head():
    message = refused(two_stage_config(), student_content="teacher")
    assert "student_content='teacher' needs queries of one width" in message


def test_stages_one_to_one():
    options = dict(distill_loss=dict(layers="one_to_one"))
    message = refused(two_stage_config("cascade_rcnn"), dino_config(decoder_layers=2), **options)
    assert "the student has 3 layers and the teacher 2" in message


def test_one_to_one_of_one_depth(pair):
    kd = pair(
        two_stage_config("cascade_rcnn"),
        dino_config(decoder_layers=3),
        points=ALL_SETS,
        distill_loss=dict(layers="one_to_one"),
    )
    assert len(kd_terms(losses_of(kd, demo_batch(kd)))) == 27


@pytest.mark.parametrize(
    "change, told",
    [
        (
            lambda cfg: cfg.roi_head.update(type="DoubleHeadRoIHead", reg_roi_scale_factor=1.3),
            "FasterRCNN with a DoubleHeadRoIHead cannot be distilled",
        ),
        (
            lambda cfg: (cfg.update(type="FastRCNN"), cfg.pop("rpn_head")),
            "FastRCNN with a StandardRoIHead cannot be distilled",
        ),
        (
            lambda cfg: cfg.roi_head.bbox_head.update(with_reg=False),
            "Shared2FCBBoxHead cannot be distilled",
        ),
        (
            lambda cfg: cfg.roi_head.bbox_head.loss_cls.update(use_sigmoid=True),
            "Shared2FCBBoxHead cannot be distilled",
        ),
        (
            lambda cfg: cfg.roi_head.bbox_head.update(
                loss_cls=dict(type="SeesawLoss", num_classes=4)
            ),
            "Shared2FCBBoxHead cannot be distilled",
        ),
    ],
    ids=["double head", "no rpn", "no regression", "sigmoid", "seesaw"],
)
def test_unknown_heads(change, told):
    cfg = two_stage_config()
    change(cfg)
    message = refused(cfg)
    assert message.startswith(told)
    assert "KDDETR knows" in message


def test_a_box_head_of_another_kind():
    cfg = get_config("mmdet::sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py").model
    cfg.backbone.update(small_backbone(4))
    cfg.neck.in_channels = [4, 8, 16, 32]
    assert refused(cfg).startswith("SABLHead cannot be distilled")


def test_an_rpn_without_anchors_has_none_to_ask_at(batch):
    detector = build(two_stage_config())
    family = TwoStageFamily(detector)
    with family.recording() as record:
        data = batch(detector)
        detector.loss(data["inputs"], data["data_samples"])
    generator = detector.rpn_head.prior_generator
    del detector.rpn_head.prior_generator
    with pytest.raises(ConfigError, match="RPNHead has no anchors"):
        family.boxes(record, "anchors")
    detector.rpn_head.prior_generator = generator
    assert len(family.boxes(record, "anchors")) == 2
