"""The distillation loss: numbers worked by hand, gradients, float32, the same on every rank."""

from math import log

import pytest
import torch
import torch.multiprocessing as mp

import kd_detr_mmdet  # noqa: F401  isort: skip  (spawned processes have no conftest)

from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch.utils._python_dispatch import TorchDispatchMode

from kd_detr_mmdet.losses import RebalancedDistillLoss
from kd_detr_mmdet.losses.rebalanced_distill_loss import elementwise_giou
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.utils import ConfigError

LN3 = log(3)  # sigmoid(ln 3) = 0.75, sigmoid(-ln 3) = 0.25, sigmoid(ln 9) = 0.9
UNIT = dict(cls_weight=1.0, l1_weight=1.0, giou_weight=1.0)
ALL_OF_IT = (0.5, 0.5, 1.0, 1.0)
TERMS = ("cls", "l1", "giou")


def answer(logits, boxes=None):
    """An answer of one layer and one image, from lists (M, C) and (M, 4)."""
    logits = torch.tensor(logits)[None, None]
    boxes = torch.tensor([ALL_OF_IT] * logits.size(2) if boxes is None else boxes)
    return Answer(logits, boxes.expand(1, 1, -1, 4))


def random_answer(seed, layers=1, images=2, points=5, classes=3, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, images, points)
    boxes = 0.1 + 0.5 * torch.rand(*shape, 4, generator=generator)
    return Answer(scale * torch.randn(*shape, classes, generator=generator), boxes)


def loss_of(student, teacher, name="x", valid=None, **options):
    """The losses alone, without what is for the log."""
    said = RebalancedDistillLoss(**{**UNIT, **options})(student, teacher, name, valid)
    return {name: value for name, value in said.items() if "loss" in name}


def close(value, expected):
    return value.item() == pytest.approx(expected, rel=1e-5)


# --- the class term -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, expected", [(None, 0.130812), (2.0, 0.523248)])
def test_bernoulli_golden_number(temperature, expected):
    # p_t = 0.75, p_s = 0.5 after division by T; the second class agrees, and adds nothing.
    # KL(t || s) = 0.75 ln(0.75/0.5) + 0.25 ln(0.25/0.5) = 0.304099 - 0.173287 = 0.130812
    # (KL(s || t) would be 0.5 ln(0.5/0.75) + 0.5 ln(0.5/0.25) = 0.143841), times T^2 = 4.
    scale = temperature or 1.0
    student, teacher = answer([[0.0, -scale]]), answer([[scale * LN3, -scale]])
    loss = loss_of(student, teacher, temperature=temperature)
    assert loss["kd_loss_x_cls"].item() == pytest.approx(expected, abs=2e-6)


def test_bernoulli_sums_over_the_classes():
    # Two classes, each as above: 2 * 0.130812.
    loss = loss_of(answer([[0.0, 0.0]]), answer([[LN3, LN3]]))
    assert close(loss["kd_loss_x_cls"], 0.261624)


@pytest.mark.parametrize("temperature, expected", [(None, 13.0812), (1.0, 0.130812)])
def test_softmax_golden_number(temperature, expected):
    # Teacher logits (T ln 3, 0) / T -> softmax (0.75, 0.25), student (0.5, 0.5):
    # KL(t || s) = 0.130812 as above (the reverse: 0.143841), times T^2; T is 10 by default.
    scale = temperature or 10.0
    student, teacher = answer([[0.0, 0.0]]), answer([[scale * LN3, 0.0]])
    loss = loss_of(student, teacher, class_term="softmax", temperature=temperature)
    assert loss["kd_loss_x_cls"].item() == pytest.approx(expected, rel=2e-5)


def test_softmax_ignores_a_constant_and_bernoulli_does_not():
    student, teacher = random_answer(0), random_answer(1)
    lower = Answer(student.cls_scores - 3, student.boxes)

    def change(class_term):
        before, after = (
            loss_of(s, teacher, class_term=class_term)["kd_loss_x_cls"] for s in (student, lower)
        )
        return abs(after / before - 1).item()

    assert change("softmax") < 1e-4
    assert change("bernoulli") > 0.1


# --- a softmax with a background -----------------------------------------------------------------


def with_background(logits, boxes=None):
    return answer(logits, boxes)._replace(has_background=True)


@pytest.mark.parametrize("class_term", ["bernoulli", "softmax"])
def test_softmax_over_classes_and_background_golden_number(class_term):
    # Teacher softmax of (ln 2, 0, ln 5): (.25, .125, .625), student (1/3, 1/3, 1/3).
    # KL = .25 ln .75 + .125 ln .375 + .625 ln 1.875
    #    = -.071921 - .122604 + .392881 = .198356, whatever the class term is called.
    # Over the two classes alone it would be KL((2/3, 1/3) || (1/2, 1/2)) = .056633.
    student, teacher = with_background([[0.0] * 3]), with_background([[log(2), 0.0, log(5)]])
    loss = loss_of(student, teacher, class_term=class_term, temperature=1.0)
    assert loss["kd_loss_x_cls"].item() == pytest.approx(0.198356, abs=2e-6)


def test_the_background_is_no_foreground():
    # w is .25 for the first point (its background has .625) and .8 for the second:
    # softmax of (ln 16, ln 3, 0) = (.8, .15, .05). l1 is .1 and .2:
    # (.25 * .1 + .8 * .2) / 1.05. With the background as a class: (.0625 + .16) / 1.425.
    logits = [[log(2), 0.0, log(5)], [log(16), log(3), 0.0]]
    teacher = with_background(logits)
    student = with_background(logits, [[0.6, 0.6, 1.1, 1.1], [0.7, 0.7, 1.2, 1.2]])
    assert close(loss_of(student, teacher)["kd_loss_x_l1"], 0.185 / 1.05)
    weight = RebalancedDistillLoss().foreground_weight(teacher.cls_scores[0], True)
    assert torch.allclose(weight, torch.tensor([[0.25, 0.8]]))
    assert close(loss_of(student, teacher, rebalance=False)["kd_loss_x_l1"], 0.15)


# --- boxes ----------------------------------------------------------------------------------------


def test_l1_golden_number():
    # |0.5-0.6| = 0.1, 0, |0.2-0.4| = 0.2, |0.4-0.2| = 0.2; the mean over the 4 is 0.125.
    student = answer([[0.0]], [(0.6, 0.5, 0.4, 0.2)])
    teacher = answer([[0.0]], [(0.5, 0.5, 0.2, 0.4)])
    assert close(loss_of(student, teacher)["kd_loss_x_l1"], 0.125)


@pytest.mark.parametrize(
    "box, target, expected",
    [
        # [0,.5]x[0,1] and [.25,.75]x[0,1]: overlap .25, union = enclosure = .75 -> 1/3
        ((0.25, 0.5, 0.5, 1.0), (0.5, 0.5, 0.5, 1.0), 1 / 3),
        # [0,.25]x[0,1] and [.75,1]x[0,1]: no overlap, union .5, enclosure 1 -> 0 - .5/1
        ((0.125, 0.5, 0.25, 1.0), (0.875, 0.5, 0.25, 1.0), -0.5),
        # corners [0,.25]^2 and [.75,1]^2: union .125, enclosure 1 -> -.875
        ((0.125, 0.125, 0.25, 0.25), (0.875, 0.875, 0.25, 0.25), -0.875),
        # one within the other: IoU .25/1, the enclosure is the union -> .25
        ((0.5, 0.5, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5), 0.25),
    ],
)
def test_giou_golden_numbers(box, target, expected):
    giou = elementwise_giou(torch.tensor([box]), torch.tensor([target]))
    assert giou.item() == pytest.approx(expected, abs=1e-6)
    loss = loss_of(answer([[0.0]], [box]), answer([[0.0]], [target]))
    assert close(loss["kd_loss_x_giou"], 1 - expected)


def test_giou_is_the_diagonal_of_mmdets_matrix():
    boxes, targets = random_answer(0).boxes[0, 0], random_answer(1).boxes[0, 0]
    corners = bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(targets)
    matrix = bbox_overlaps(*corners, mode="giou")
    assert torch.allclose(elementwise_giou(boxes, targets), matrix.diag(), atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operator made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else (result,)
        made = [r.numel() for r in results if torch.is_tensor(r)]
        self.numel = max(self.numel, *made, 0)
        return result


def test_nothing_is_as_large_as_points_squared():
    points, classes = 2_000, 3
    student, teacher = (random_answer(s, 2, 1, points, classes) for s in (0, 1))
    with LargestTensor() as largest:
        loss_of(student, teacher)
    assert 0 < largest.numel <= 2 * points * 4


# --- weights, normalisation, factors --------------------------------------------------------------


def six_points():
    """Two images of three points: w = .75, .25, .1 and .5, .9, .25; l1 = .1, .2, .5 and .3, .4, .6.

    A second class is always at 0.1 (logit -ln 9), never above the first: w is the maximum, not a
    mean.
    """
    first = torch.tensor([[LN3, -LN3, -2 * LN3], [0.0, 2 * LN3, -LN3]])
    logits = torch.stack([first, torch.full_like(first, -2 * LN3)], -1)[None]
    teacher = Answer(logits, torch.full((1, 2, 3, 4), 0.5))
    offsets = torch.tensor([[0.1, 0.2, 0.5], [0.3, 0.4, 0.6]])[None, ..., None]
    return Answer(logits.clone(), teacher.boxes + offsets), teacher


@pytest.mark.parametrize(
    "normalize, rebalance, expected",
    [
        # sum w l = .075 + .05 + .05 + .15 + .36 + .15 = .835
        ("weight", True, 0.835 / 2.75),  # sum w = 1.1 + 1.65
        ("points", True, 0.835 / 6),
        ("images", True, 0.835 / 2),
        # all w are 1: sum l = 2.1
        ("weight", False, 2.1 / 6),
        ("points", False, 2.1 / 6),
        ("images", False, 2.1 / 2),
    ],
)
def test_normalisation_golden_numbers(normalize, rebalance, expected):
    loss = loss_of(*six_points(), normalize=normalize, rebalance=rebalance)
    assert close(loss["kd_loss_x_l1"], expected)


# Of the six points, the second image's last two do not exist.
VALID = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    "normalize, rebalance, expected",
    [
        # sum w l = .075 + .05 + .05 + .15 = .325
        ("weight", True, 0.325 / 1.6),  # sum w = 1.1 + .5
        ("points", True, 0.325 / 4),
        ("images", True, 0.325 / 2),
        # all w are 1: sum l = .8 + .3
        ("weight", False, 1.1 / 4),
        ("points", False, 1.1 / 4),
        ("images", False, 1.1 / 2),
    ],
)
def test_points_that_do_not_exist_count_neither_above_nor_below(normalize, rebalance, expected):
    loss = loss_of(*six_points(), valid=VALID, normalize=normalize, rebalance=rebalance)
    assert close(loss["kd_loss_x_l1"], expected)


@pytest.mark.parametrize("normalize", ["weight", "points", "images"])
def test_points_that_do_not_exist_teach_nothing(normalize):
    student, teacher = (random_answer(seed, points=3) for seed in (0, 1))
    student = Answer(*(t.requires_grad_() for t in student[:2]))
    sum(loss_of(student, teacher, valid=VALID, normalize=normalize).values()).backward()
    for tensor in student[:2]:
        assert torch.equal(tensor.grad[0].abs().sum(-1) > 0, VALID)


@pytest.mark.parametrize("normalize", ["weight", "points", "images"])
def test_no_point_that_exists_gives_zero_and_a_zero_gradient(normalize):
    student = Answer(*(t.requires_grad_() for t in random_answer(0, points=3)[:2]))
    nothing = torch.zeros_like(VALID)
    losses = loss_of(student, random_answer(1, points=3), valid=nothing, normalize=normalize)
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert not any(tensor.grad.any() for tensor in student[:2])


def test_foreground_weights_are_not_softened_by_the_temperature():
    loss = loss_of(*six_points(), temperature=5.0)
    assert close(loss["kd_loss_x_l1"], 0.835 / 2.75)


def test_background_points_count_for_nothing_in_any_term():
    student, teacher = random_answer(0, points=2), random_answer(1, points=2)
    teacher.cls_scores[:, :, 1] = -200.0
    first = [Answer(*(t[:, :, :1] for t in a[:2])) for a in (student, teacher)]
    both, alone = loss_of(student, teacher), loss_of(*first)
    for key in alone:
        assert close(both[key], alone[key].item()), key


def test_factors_of_terms_and_of_sets():
    student, teacher = random_answer(0), random_answer(1)
    plain = loss_of(student, teacher, "general")
    factors = dict(cls_weight=3.0, l1_weight=5, giou_weight=0.5)
    sets = dict(set_weights=dict(general=0.25))
    for name, factor in (("general", 0.25), ("specific", 1.0)):  # a set not named counts fully
        weighted = loss_of(student, teacher, name, **factors, **sets)
        for term in TERMS:
            expected = factor * factors[f"{term}_weight"] * plain[f"kd_loss_general_{term}"].item()
            assert close(weighted[f"kd_loss_{name}_{term}"], expected), (name, term)


def test_the_default_factors_are_the_authors():
    student, teacher = random_answer(0), random_answer(1)
    raw = loss_of(student, teacher, "general")
    weighted = RebalancedDistillLoss()(student, teacher, "general")
    for term, factor in dict(cls=1, l1=5, giou=2).items():
        key = f"kd_loss_general_{term}"
        assert close(weighted[key], factor * raw[key].item())


# --- layers ---------------------------------------------------------------------------------------


def test_keys_name_the_layer_the_set_and_the_term():
    student, teacher = random_answer(0, layers=3), random_answer(1, layers=2)
    keys = set(loss_of(student, teacher, "specific"))
    assert keys == {
        f"{layer}kd_loss_specific_{term}" for layer in ("d0.", "d1.", "") for term in TERMS
    }
    assert "d0.kd_loss_general_giou" in loss_of(student, teacher, "general")


def test_last_puts_every_student_layer_against_the_teachers_last():
    student, teacher = random_answer(0, layers=3), random_answer(1, layers=2)
    together = loss_of(student, teacher)
    for layer, prefix in enumerate(("d0.", "d1.", "")):
        apart = loss_of(Answer(*(t[layer : layer + 1] for t in student[:2])), teacher)
        for term in TERMS:
            assert close(together[f"{prefix}kd_loss_x_{term}"], apart[f"kd_loss_x_{term}"].item())


def test_one_to_one_puts_layer_against_layer_with_the_last_layers_weights():
    # Layer 0: the teacher's box is off by 0.1 and 0.3; layer 1: by 0.2 and 0.2.
    # The weights are the teacher's last layer's, 0.75 and 0.25, not layer 0's 0.5 and 0.5:
    # d0: (.75 * .1 + .25 * .3) / 1 = 0.15, last: 0.2; 'last' would give (.75 * .4 + .25 * .4) = .4
    student = Answer(torch.zeros(2, 1, 2, 1), torch.full((2, 1, 2, 4), 0.5))
    student.boxes[0] -= 0.2
    teacher = Answer(torch.zeros(2, 1, 2, 1), torch.full((2, 1, 2, 4), 0.5))
    teacher.cls_scores[1, 0, :, 0] = torch.tensor([LN3, -LN3])
    teacher.boxes[0, 0] = torch.tensor([[0.4], [0.6]])
    teacher.boxes[1] = 0.7
    one_to_one = loss_of(student, teacher, layers="one_to_one")
    assert close(one_to_one["d0.kd_loss_x_l1"], 0.15)
    assert close(one_to_one["kd_loss_x_l1"], 0.2)
    assert close(loss_of(student, teacher)["d0.kd_loss_x_l1"], 0.4)


# --- zero, and nothing to divide by ---------------------------------------------------------------


@pytest.mark.parametrize("class_term", ["bernoulli", "softmax"])
@pytest.mark.parametrize("layers", ["last", "one_to_one"])
def test_identical_answers_cost_nothing(class_term, layers):
    one = random_answer(0, layers=1, points=300, scale=10.0)
    same = Answer(*(t.expand(2, *t.shape[1:]) for t in one[:2]))
    for key, value in loss_of(same, same, class_term=class_term, layers=layers).items():
        assert value.abs() < 1e-6, key


@pytest.mark.parametrize("side", [1e-1, 1e-3, 1e-4])
def test_identical_small_boxes_cost_nothing(side):
    # 1e-4: one pixel of an image 10,000 wide.
    centres = torch.rand(1, 1, 200, 2, generator=torch.Generator().manual_seed(0))
    same = Answer(
        torch.zeros(1, 1, 200, 3), torch.cat([centres, torch.full_like(centres, side)], 3)
    )
    assert loss_of(same, same)["kd_loss_x_giou"].abs() < 1e-6


@pytest.mark.parametrize("class_term", ["bernoulli", "softmax"])
@pytest.mark.parametrize("normalize", ["weight", "points", "images"])
def test_no_points_give_zero_and_a_zero_gradient(class_term, normalize):
    student = Answer(*(t.requires_grad_() for t in random_answer(0, points=0)[:2]))
    options = dict(class_term=class_term, normalize=normalize)
    losses = loss_of(student, random_answer(1, points=0), **options)
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize(
    "class_term, logit",
    [("bernoulli", -1e4), ("softmax", -1e4), ("bernoulli", float("-inf"))],
)
@pytest.mark.parametrize("normalize", ["weight", "points", "images"])
def test_a_teacher_that_sees_nothing_gives_finite_losses(class_term, logit, normalize):
    # Every w is 0, and so is their sum.
    student = Answer(*(t.requires_grad_() for t in random_answer(0)[:2]))
    teacher = Answer(torch.full_like(student.cls_scores, logit), random_answer(1).boxes)
    losses = loss_of(student, teacher, class_term=class_term, normalize=normalize)
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(t.grad.isfinite().all() for t in student[:2])


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_term", ["bernoulli", "softmax"])
@pytest.mark.parametrize("layers", ["last", "one_to_one"])
def test_every_term_teaches_the_student_and_never_the_teacher(class_term, layers):
    options = dict(class_term=class_term, layers=layers)
    for term in TERMS:
        for prefix, layer in (("d0.", 0), ("", 1)):
            student, teacher = (
                Answer(*(t.requires_grad_() for t in random_answer(s, layers=2)[:2]))
                for s in (0, 1)
            )
            loss_of(student, teacher, **options)[f"{prefix}kd_loss_x_{term}"].backward()
            taught = student.cls_scores if term == "cls" else student.boxes
            per_point = taught.grad[layer].abs().sum(-1)
            assert (per_point > 0).all(), (term, prefix)
            assert taught.grad[1 - layer].abs().sum() == 0  # a layer's term teaches that layer
            assert teacher.cls_scores.grad is None and teacher.boxes.grad is None


@pytest.mark.parametrize("class_term", ["bernoulli", "softmax"])
def test_gradient_steps_bring_the_student_to_the_teacher(class_term):
    student = [t.clone().requires_grad_() for t in random_answer(0)[:2]]
    teacher = random_answer(1)

    def probabilities(logits):
        return logits.sigmoid() if class_term == "bernoulli" else (logits / 10).softmax(-1)

    def distances():
        with torch.no_grad():
            classes = probabilities(student[0]) - probabilities(teacher.cls_scores)
            boxes = student[1] - teacher.boxes
            return torch.stack([classes.abs().mean(), boxes.abs().mean()])

    start = distances()
    # One step alone already brings each nearer ...
    for steps, share in ((1, 1.0), (200, 0.2)):
        for _ in range(steps):
            loss = sum(loss_of(Answer(*student), teacher, class_term=class_term).values())
            gradients = torch.autograd.grad(loss, student)
            with torch.no_grad():
                student[0] -= 2.0 * gradients[0]
                student[1] -= 0.02 * gradients[1]
        # ... and many bring it most of the way.
        assert (distances() < share * start).all(), (steps, start, distances())


def test_the_class_term_is_least_at_the_teachers_own_logits():
    # A divergence in one direction, not a squared difference: its gradient at the teacher's
    # probability p is p_s - p_t for each class (here 0.5 - 0.75), so a fixed step is known.
    student = answer([[0.0]])
    student.cls_scores.requires_grad_()
    loss_of(student, answer([[LN3]]))["kd_loss_x_cls"].backward()
    assert student.cls_scores.grad.item() == pytest.approx(-0.25, abs=1e-6)


# --- float32 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_term", ["bernoulli", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_inputs_are_computed_in_float32(class_term, dtype, autocast):
    student, teacher = (
        Answer(*(t.to(dtype) for t in random_answer(seed, scale=20.0)[:2])) for seed in (0, 1)
    )
    exact = [Answer(*(t.float() for t in a[:2])) for a in (student, teacher)]
    expected = loss_of(*exact, class_term=class_term)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = loss_of(student, teacher, class_term=class_term)
    for key, value in losses.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[key]), key


@pytest.mark.parametrize("class_term", ["bernoulli", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_give_the_exact_number(class_term, dtype):
    # Teacher surely class 0, student surely class 1, logits +-60. T = 1.
    # bernoulli: each class costs -ln sigmoid(-60) = 60, together 120.
    # softmax: -ln softmax = 120 for the one class that the teacher sees.
    student = answer([[-60.0, 60.0]])
    teacher = answer([[60.0, -60.0]])
    student, teacher = (Answer(*(t.to(dtype) for t in a[:2])) for a in (student, teacher))
    student.cls_scores.requires_grad_()
    options = dict(class_term=class_term, temperature=1.0)
    loss = loss_of(student, teacher, **options)["kd_loss_x_cls"]
    assert close(loss, 120.0)
    loss.backward()
    assert student.cls_scores.grad[0, 0, 0].tolist() == pytest.approx([-1.0, 1.0], rel=1e-3)


# --- ranks ----------------------------------------------------------------------------------------

# Three images: much foreground, little, and none at all.
IMAGE_LOGITS = (2.0, -3.0, -60.0)
CASES = [
    (normalize, shift) for normalize in ("weight", "points", "images") for shift in (0.0, -25.0)
]  # at -25 the sum of w is about 1e-10, below the floor under it


def shared_gradients(images):
    """Gradients of all terms to one shift shared by every point, per case, for some images."""
    result = []
    for normalize, shift in CASES:
        student, teacher = (random_answer(seed, images=3) for seed in (0, 1))
        teacher = Answer(
            teacher.cls_scores + torch.tensor(IMAGE_LOGITS)[None, :, None, None] + shift,
            teacher.boxes,
        )
        shared = torch.zeros(2, requires_grad=True)
        moved = student.cls_scores + shared[0], student.boxes + shared[1]
        moved, teacher = (Answer(*(t[:, images] for t in a[:2])) for a in (moved, teacher))
        loss = sum(loss_of(moved, teacher, normalize=normalize).values())
        result.append(torch.autograd.grad(loss, shared)[0])
    return torch.stack(result)


def one_rank(rank, folder, split):
    """A process of a distributed run; DDP's averaging of gradients is done by hand."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(split)
    )
    gradients = shared_gradients(split[rank])
    torch.distributed.all_reduce(gradients)
    if rank == 0:
        torch.save(gradients / len(split), f"{folder}/mean.pth")
    torch.distributed.destroy_process_group()


def test_the_gradient_is_the_same_on_one_rank_and_on_two(tmp_path):
    alone = shared_gradients([0, 1, 2])
    split = ([0], [1, 2])
    mp.spawn(one_rank, args=(str(tmp_path), split), nprocs=2)
    mean = torch.load(tmp_path / "mean.pth")
    assert (alone.abs().sum(1) > 0).all()
    for case, expected, got in zip(CASES, alone, mean):
        assert torch.allclose(got, expected, rtol=1e-4, atol=0), (case, expected, got)


# --- options --------------------------------------------------------------------------------------

BAD_NUMBERS = (-1, -0.5, float("nan"), float("inf"), True, "2", None, [1.0])


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(class_term="kl"), "class_term"),
        (dict(class_term=None), "class_term"),
        (dict(layers="all"), "layers"),
        (dict(normalize="mean"), "normalize"),
        (dict(rebalance="no"), "rebalance"),
        (dict(rebalance=1), "rebalance"),
        (dict(temperature=0), "temperature"),
        *[(dict(temperature=bad), "temperature") for bad in BAD_NUMBERS if bad is not None],
        *[
            ({f"{term}_weight": bad}, f"distill_loss.{term}_weight")
            for term in TERMS
            for bad in BAD_NUMBERS
        ],
        *[(dict(set_weights=dict(general=bad)), "set_weights['general']") for bad in BAD_NUMBERS],
        (dict(cls_weight=0, l1_weight=0.0, giou_weight=0), "nothing to distil"),
        (dict(set_weights=0.5), "set_weights"),
        (dict(set_weights=[1.0, 2.0]), "set_weights"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ConfigError) as error:
        RebalancedDistillLoss(**options)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_good_options_of_every_kind_are_taken():
    for class_term in ("bernoulli", "softmax"):
        for layers in ("last", "one_to_one"):
            for normalize in ("weight", "points", "images"):
                RebalancedDistillLoss(
                    class_term=class_term,
                    temperature=2,
                    cls_weight=0,
                    l1_weight=1,
                    giou_weight=0.5,
                    set_weights=dict(general=0),
                    rebalance=False,
                    layers=layers,
                    normalize=normalize,
                )


# --- for the log ----------------------------------------------------------------------------------


def test_raw_terms_and_the_mean_weight_are_told_beside_the_losses():
    student, teacher = six_points()
    student.cls_scores.requires_grad_()
    options = dict(cls_weight=2.0, l1_weight=0.0, giou_weight=3.0, set_weights=dict(x=0.5))
    said = RebalancedDistillLoss(**options)(student, teacher, "x")
    # w = .75, .25, .1 and .5, .9, .25.
    assert close(said["kd_foreground_x"], 2.75 / 6)
    assert close(said["kd_raw_x_l1"], 0.835 / 2.75)
    assert said["kd_loss_x_l1"] == 0
    assert close(said["kd_loss_x_giou"], 1.5 * said["kd_raw_x_giou"].item())
    details = {name for name in said if "loss" not in name}  # MMEngine sums whatever is a loss
    assert details == {"kd_foreground_x", *(f"kd_raw_x_{term}" for term in TERMS)}
    assert not any(said[name].requires_grad for name in details)
    seen = torch.tensor([[True, True, False], [True, False, False]])
    said = RebalancedDistillLoss()(student, teacher, "x", seen)
    assert close(said["kd_foreground_x"], 1.5 / 3)


def test_nothing_has_the_names_of_a_step_and_is_0():
    student, teacher = random_answer(0, layers=3), random_answer(1)
    loss = RebalancedDistillLoss()
    nothing = loss.nothing("general", 3, torch.device("cpu"))
    assert list(nothing) == list(loss(student, teacher, "general"))
    assert all(value == 0 and value.dim() == 0 for value in nothing.values())
