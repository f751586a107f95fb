"""QueryPairing: whose answer is compared with whose, on cases with one obvious matching."""

import itertools

import pytest
import torch
from conftest import FAMILY_CONFIGS, dab_config, detr_config, dino_config
from mmdet.registry import TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.structures import InstanceData

from kd_detr_mmdet.losses import RebalancedDistillLoss
from kd_detr_mmdet.points import Answer, QueryPairing
from kd_detr_mmdet.points.pairing import STRATEGIES
from kd_detr_mmdet.utils import ConfigError

HEIGHT, WIDTH = 100, 200
LEFT, RIGHT, SMALL, LOW, TOP = (
    (0.25, 0.5, 0.2, 0.4),
    (0.75, 0.5, 0.2, 0.4),
    (0.5, 0.1, 0.1, 0.1),
    (0.5, 0.9, 0.1, 0.1),
    (0.5, 0.25, 0.2, 0.4),
)
PIXELS = {  # by hand
    LEFT: (30.0, 30.0, 70.0, 70.0),
    RIGHT: (130.0, 30.0, 170.0, 70.0),
    TOP: (80.0, 5.0, 120.0, 45.0),
}
OBJECTS = ((RIGHT, 2), (LEFT, 0))  # the ground truth, in this order


def said(*queries, layers=2, classes=3, has_background=False, seed=0):
    """One image's answer whose last layer sees (box, class) at each query, None for nothing."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, 1, len(queries), classes, generator=generator)
    boxes = 0.2 + 0.2 * torch.rand(layers, 1, len(queries), 4, generator=generator)
    for i, (box, seen) in enumerate(queries):
        scores[-1, 0, i] = torch.tensor([4.0 if seen == c else -4.0 for c in range(classes)])
        scores[-1, 0, i] += 0.1 * i**2  # no two queries say the same
        boxes[-1, 0, i] = torch.tensor(box)
    return Answer(scores, boxes, has_background)


def sample(*objects):
    """An image's ground truth: boxes in pixels, in this order."""
    boxes = torch.tensor([PIXELS[box] for box, _ in objects]).reshape(-1, 4)
    labels = torch.tensor([label for _, label in objects], dtype=torch.long)
    truth = InstanceData(bboxes=boxes, labels=labels)
    return DetDataSample(metainfo=dict(img_shape=(HEIGHT, WIDTH)), gt_instances=truth)


def batched(*answers):
    """Answers of single images as one of a batch."""
    return Answer(*(torch.cat([answer[k] for answer in answers], 1) for k in range(2)))


# Three layers and four queries, two layers and three.
STUDENT = said((SMALL, None), (RIGHT, 2), (LOW, None), (LEFT, 0), layers=2, seed=1)
TEACHER = said((LEFT, 0), (SMALL, None), (RIGHT, 2), layers=3, seed=2)


def paired(strategy, student=STUDENT, teacher=TEACHER, samples=None, **options):
    samples = [sample(*OBJECTS)] if samples is None else samples
    (name, pairs), *others = QueryPairing(strategy, **options)(student, teacher, samples).items()
    assert name == strategy and not others
    return pairs


def assert_rows(answer, source, queries, image=0):
    """The rows of an answer are these queries of another, in every layer."""
    for got, from_ in zip(answer[:2], source[:2]):
        assert torch.equal(got[:, image, : len(queries)], from_[:, image, queries])


def loss_of(pairs, **options):
    loss = RebalancedDistillLoss(**options)
    return sum(loss(pairs.student, pairs.teacher, "x", pairs.valid).values())


def leaf(answer):
    return Answer(*(t.clone().requires_grad_() for t in answer[:2]), answer.has_background)


# --- each strategy on the obvious case ------------------------------------------------------------


def test_inconsistent_is_index_to_index_up_to_the_smaller_number():
    pairs = paired("inconsistent")
    assert pairs.valid.tolist() == [[True, True, True]]
    assert pairs.student.boxes.shape == (2, 1, 3, 4) and pairs.teacher.boxes.shape == (3, 1, 3, 4)
    assert_rows(pairs.student, STUDENT, [0, 1, 2])
    assert_rows(pairs.teacher, TEACHER, [0, 1, 2])


@pytest.mark.parametrize("objects", [OBJECTS, OBJECTS[::-1]])
def test_similar_foreground_is_the_matched_in_the_order_of_the_ground_truth(objects):
    pairs = paired("similar_foreground", samples=[sample(*objects)])
    assert pairs.valid.tolist() == [[True, True]]
    right_first = objects is OBJECTS
    assert_rows(pairs.student, STUDENT, [1, 3] if right_first else [3, 1])
    assert_rows(pairs.teacher, TEACHER, [2, 0] if right_first else [0, 2])


def test_similar_general_adds_the_mean_of_the_unmatched():
    pairs = paired("similar_general")
    assert pairs.valid.tolist() == [[True, True, True]]
    assert_rows(pairs.student, STUDENT, [1, 3])
    assert_rows(pairs.teacher, TEACHER, [2, 0])
    for got, source in zip(pairs.student[:2], STUDENT[:2]):
        torch.testing.assert_close(got[:, 0, 2], (source[:, 0, 0] + source[:, 0, 2]) / 2)
    # SMALL and LOW are both 0.1 wide and high, at heights 0.1 and 0.9.
    assert pairs.student.boxes[-1, 0, 2].tolist() == pytest.approx([0.5, 0.5, 0.1, 0.1])
    assert_rows(Answer(*(t[:, :, 2:] for t in pairs.teacher[:2])), TEACHER, [1])


def test_boxes_are_compared_in_the_pixels_of_the_image():
    # With height and width exchanged, TOP would lie over the object LEFT.
    student = said((TOP, 0), (LEFT, 0), seed=5)
    pairs = paired("similar_foreground", student, student, [sample((LEFT, 0), (TOP, 0))])
    assert_rows(pairs.student, student, [1, 0])


def test_hungarian_pairs_what_both_predict():
    pairs = paired("hungarian")
    assert pairs.valid.tolist() == [[True, True, True]]
    # In the order of the student's queries; SMALL, LEFT and RIGHT have their like, LOW has none.
    assert_rows(pairs.student, STUDENT, [0, 1, 3])
    assert_rows(pairs.teacher, TEACHER, [1, 2, 0])


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_hungarian_undoes_a_permutation(order):
    order = list(order)
    student = Answer(*(t[:, :, order] for t in TEACHER[:2]))
    pairs = paired("hungarian", student)
    assert_rows(pairs.teacher, TEACHER, order)
    assert loss_of(pairs).item() == pytest.approx(
        loss_of(paired("inconsistent", TEACHER, TEACHER)).item(), abs=1e-5
    )
    if order != [0, 1, 2]:
        assert loss_of(paired("inconsistent", student)) > loss_of(pairs) + 1


def test_hungarian_knows_the_teachers_classes_and_not_its_background():
    # Two objects of one box, told apart by their classes alone; the background (the last score) is
    # the likeliest at both.
    def image(*seen):
        answer = said(*((LEFT, None) for _ in seen), classes=3, has_background=True)
        answer.boxes[-1] = torch.tensor(LEFT)
        for i, label in enumerate(seen):
            answer.cls_scores[-1, 0, i] = torch.tensor([0.0, 0.0, 4.0])
            answer.cls_scores[-1, 0, i, label] = 2.0
        return answer

    pairs = paired("hungarian", image(0, 1), image(1, 0))
    assert_rows(pairs.teacher, image(1, 0), [1, 0])
    assert pairs.student.has_background and pairs.teacher.has_background


# --- numbers that do not fit ----------------------------------------------------------------------

FOREGROUND = "similar_foreground", "similar_general"


@pytest.mark.parametrize("strategy", FOREGROUND)
def test_objects_that_one_model_leaves_out_are_no_pairs(strategy):
    # One query, two objects: the student takes LEFT, the second of the ground truth.
    student = said((LEFT, 0), seed=3)
    pairs = paired(strategy, student)
    # All of the student's queries are matched, so there is no background to compare either.
    assert pairs.valid.tolist() == [[True]]
    assert_rows(pairs.student, student, [0])
    assert_rows(pairs.teacher, TEACHER, [0])
    # The same with the parts exchanged.
    pairs = paired(strategy, STUDENT, student)
    assert pairs.valid.tolist() == [[True]]
    assert_rows(pairs.student, STUDENT, [3])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("numbers", [(1, 3), (4, 1), (4, 3)])
def test_other_numbers_of_queries(strategy, numbers):
    student = Answer(*(t[:, :, : numbers[0]] for t in STUDENT[:2]))
    teacher = Answer(*(t[:, :, : numbers[1]] for t in TEACHER[:2]))
    pairs = paired(strategy, student, teacher)
    if strategy in ("inconsistent", "hungarian"):
        assert pairs.valid.sum() == min(numbers)
    assert pairs.student.boxes.shape[2] == pairs.teacher.boxes.shape[2] == pairs.valid.shape[1]
    assert loss_of(pairs).isfinite()


# --- images without ground truth ------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["weight", "points", "images"])
def test_no_ground_truth_gives_zero_and_a_gradient(normalize):
    student = leaf(STUDENT)
    pairs = paired("similar_foreground", student, samples=[sample()])
    assert not pairs.valid.any()
    loss = loss_of(pairs, normalize=normalize)
    assert loss == 0
    loss.backward()  # on one of several ranks a graph without the student would hang the others
    for tensor in student[:2]:
        assert tensor.grad is not None and not tensor.grad.any()


def test_without_ground_truth_all_is_background():
    pairs = paired("similar_general", samples=[sample()])
    assert pairs.valid.tolist() == [[True]]
    for got, source in ((pairs.student, STUDENT), (pairs.teacher, TEACHER)):
        torch.testing.assert_close(got.boxes[:, :, 0], source.boxes.mean(2))
        torch.testing.assert_close(got.cls_scores[:, :, 0], source.cls_scores.mean(2))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_a_batch_every_image_is_paired_by_itself(strategy):
    both = batched(STUDENT, STUDENT), batched(TEACHER, TEACHER)
    pairs = paired(strategy, *both, samples=[sample(), sample(*OBJECTS)])
    assert pairs.valid.sum(1).tolist() == {
        "similar_foreground": [0, 2],
        "similar_general": [1, 3],
    }.get(strategy, [3, 3])
    for image, objects in enumerate(((), OBJECTS)):
        alone = paired(strategy, samples=[sample(*objects)])
        rows = alone.valid.size(1)
        for mine, other in ((pairs.student, alone.student), (pairs.teacher, alone.teacher)):
            assert_rows(mine, batched(other, other), list(range(rows)), image)
        # What fills an image up does not count.
        assert pairs.valid[image].tolist() == [True] * rows + [False] * (pairs.valid.size(1) - rows)


def test_a_mixed_batch_costs_what_the_image_with_objects_costs():
    student = leaf(batched(STUDENT, STUDENT))
    samples = [sample(), sample(*OBJECTS)]
    loss = loss_of(paired("similar_foreground", student, batched(TEACHER, TEACHER), samples))
    assert loss.item() == pytest.approx(loss_of(paired("similar_foreground")).item(), rel=1e-5)
    loss.backward()
    assert not student.boxes.grad[:, 0].any() and student.boxes.grad[:, 1].any()


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy, reached",
    [
        ("inconsistent", [0, 1, 2]),
        ("similar_foreground", [1, 3]),
        ("similar_general", [0, 1, 2, 3]),
        ("hungarian", [0, 1, 3]),
    ],
)
def test_the_paired_queries_are_taught_and_no_others(strategy, reached):
    student = leaf(STUDENT)
    loss_of(paired(strategy, student)).backward()
    by_class, by_box = (t.grad.abs().sum((1, 3)) > 0 for t in student[:2])
    expected = torch.tensor([query in reached for query in range(4)])
    assert torch.equal(by_class, expected.expand(2, 4))  # the first layer follows the last
    assert torch.equal(by_box[0], expected)
    assert not (by_box[1] & ~expected).any()  # in the last layer, some boxes are the teacher's


# --- options --------------------------------------------------------------------------------------


def test_another_assigner_is_honoured():
    # Boxes say one thing, and scores, not so sure, the other.
    student = said((LEFT, 2), (RIGHT, 0), seed=4)
    student.cls_scores[-1] *= 0.25
    student.cls_scores[0] = student.cls_scores[-1].flip(1)  # but the last layer counts
    assert_rows(paired("similar_foreground", student).student, student, [1, 0])
    by_class = dict(type="HungarianAssigner", match_costs=[dict(type="FocalLossCost", weight=1.0)])
    pairs = paired("similar_foreground", student, assigner=by_class)
    assert_rows(pairs.student, student, [0, 1])
    assert by_class["match_costs"] == [dict(type="FocalLossCost", weight=1.0)]


def test_an_assigner_is_built_with_the_model():
    with pytest.raises(KeyError, match="Nope"):
        QueryPairing("hungarian", assigner=dict(type="Nope"))
    with pytest.raises(ConfigError, match="points.assigner changes nothing"):
        QueryPairing("inconsistent", assigner=dict(type="HungarianAssigner", match_costs=[]))


@pytest.mark.parametrize("strategy", ["general", None, "Hungarian"])
def test_an_unknown_strategy_is_refused(strategy):
    with pytest.raises(ConfigError, match="^points.strategy must be one of 'inconsistent'"):
        TASK_UTILS.build(dict(type="QueryPairing", strategy=strategy))


# --- within a step of training --------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("student", ["dino", "dab", "ddq", "detr"])
def test_one_step(pair, batch, monkeypatch, student, strategy):
    # The teacher has other queries, fewer than the student.
    teacher = dab_config(num_queries=9) if student == "dab" else dino_config(num_queries=9)
    kd = pair(
        FAMILY_CONFIGS[student], teacher, points=dict(type="QueryPairing", strategy=strategy)
    ).train()
    seen, pair_up = [], QueryPairing.__call__

    def spy(pairing, *given):
        seen.append((given, pair_up(pairing, *given)))
        return seen[-1][1]

    monkeypatch.setattr(QueryPairing, "__call__", spy)
    losses = kd(**batch(kd, num_items=[2, 0]), mode="loss")
    (((mine, theirs, _), pairs),) = seen
    # Its own queries: no denoising ones, no dense ones. The teacher was asked at its own as well.
    assert mine.boxes.shape == (2, 2, 12, 4) and theirs.boxes.shape == (2, 2, 9, 4)
    assert not theirs.boxes.requires_grad
    # Images are padded, so each has its own rows.
    expected = dict(
        inconsistent=[9, 9], similar_foreground=[2, 0], similar_general=[3, 1], hungarian=[9, 9]
    )
    assert pairs[strategy].valid.sum(1).tolist() == expected[strategy]
    distil = {name: value for name, value in losses.items() if "kd_loss" in name}
    assert set(distil) == {
        f"{layer}kd_loss_{strategy}_{term}"
        for layer in ("d0.", "")
        for term in ("cls", "l1", "giou")
    }
    assert all(value.isfinite() and value > 0 for value in distil.values())
    sum(distil.values()).backward()
    taught = {
        name.split(".")[1]
        for name, parameter in kd.named_parameters()
        if parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()
    }
    assert {"backbone", "neck", "encoder", "decoder", "bbox_head"} <= taught
    # Here, other than at shared points, the student's own queries learn.
    assert {"query_map" if student == "ddq" else "query_embedding"} <= taught


@pytest.mark.parametrize("student", ["dab", "detr", "refine", "two_stage", "conditional", "ddq"])
def test_a_batch_without_objects_teaches_nothing_and_reaches_every_parameter(pair, batch, student):
    points = dict(type="QueryPairing", strategy="similar_foreground")
    kd = pair(FAMILY_CONFIGS[student], dino_config(num_queries=9), points=points).train()
    losses = kd(**batch(kd, num_items=[0, 0]), mode="loss")
    distil = [value for name, value in losses.items() if "kd_loss" in name]
    assert len(distil) == 6 and not any(distil)
    sum(distil).backward()  # else another process would wait for these gradients
    assert all(parameter.grad is not None for parameter in kd.student.decoder.layers.parameters())


@pytest.mark.parametrize("strategy", ["inconsistent", "hungarian"])
def test_detrs_of_other_widths_can_be_paired(pair, batch, strategy):
    points = dict(type="QueryPairing", strategy=strategy)
    kd = pair(detr_config(), detr_config(width=64), points=points)
    losses = kd.train()(**batch(kd), mode="loss")
    assert losses[f"kd_loss_{strategy}_cls"] > 0


@pytest.mark.parametrize(
    ("name", "has_background"),
    [("dino/dino-4scale_r50_8xb2-12e_coco", False), ("detr/detr_r50_8xb2-150e_coco", True)],
)
def test_without_an_assigner_the_costs_are_mmdets(name, has_background):
    """40 queries and 6 objects in each of 20 images, so that every cost decides somewhere."""
    stock = get_config(f"mmdet::{name}.py").model.train_cfg.assigner
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 20, 40, 4, generator=generator)
    boxes = 0.1 + 0.5 * torch.rand(1, 20, 40, 4, generator=generator)
    answer = Answer(scores, boxes, has_background)
    corners = torch.rand(20, 6, 2, 2, generator=generator).sort(2).values.flatten(2)
    samples = [
        DetDataSample(
            metainfo=dict(img_shape=(100, 100)),
            gt_instances=InstanceData(bboxes=100 * truth, labels=torch.arange(6) % 3),
        )
        for truth in corners
    ]
    default, theirs = (
        paired("similar_foreground", answer, answer, samples, **options)
        for options in ({}, dict(assigner=stock.to_dict()))
    )
    assert torch.equal(default.student.boxes, theirs.student.boxes)


def test_what_is_matched_in_one_model_alone_is_not_unmatched():
    """Three objects, two queries each, of which they share one object's: nothing is left over."""
    student, teacher = said((LEFT, 0), (RIGHT, 2)), said((RIGHT, 2), (TOP, 1))
    objects = sample((LEFT, 0), (RIGHT, 2), (TOP, 1))
    pairs = paired("similar_general", student, teacher, [objects])
    assert pairs.valid.tolist() == [[True]]
