"""From C sigmoids to a softmax over C + 1: numbers worked by hand, zeros, extremes, gradients."""

import itertools
from math import log

import pytest
import torch

from kd_detr_mmdet.losses import RebalancedDistillLoss
from kd_detr_mmdet.losses.class_bridge import CLASS_BRIDGES, bridged_divergence
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.utils import ConfigError

LN3 = log(3)
TEACHER = [LN3, -LN3]  # sigmoids .75 and .25
STUDENT = [log(2), 0.0, log(5)]  # softmax .25, .125 and, of the background, .625
# posterior: the teacher's max is .75, its shares .75 and .25, so it says (.5625, .1875, .25):
#   .5625 ln(.5625/.25) + .1875 ln(.1875/.125) + .25 ln(.25/.625) = .456148 + .076025 - .229073
# binary: .75 ln(.75/.25) + .25 ln(.25/.75) = .549306 of the first class, and of the second
#   .25 ln(.25/.125) + .75 ln(.75/.875) = .173287 - .115613
# foreground: the student's shares are .25/.375 and .125/.375, 2/3 and 1/3:
#   .75 ln(.75 * 1.5) + .25 ln(.25 * 3) = .088337 - .071921
GOLDEN = dict(posterior=0.303100, binary=0.606980, foreground=0.016417)


def divergence(student, teacher, bridge):
    return bridged_divergence(torch.tensor(student), torch.tensor(teacher), bridge)


def gradient(student, teacher, bridge):
    student = torch.tensor(student, requires_grad=True)
    bridged_divergence(student, torch.tensor(teacher), bridge).sum().backward()
    return student.grad


def random_logits(seed, *shape, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bridge", CLASS_BRIDGES)
def test_golden_number(bridge):
    assert divergence(STUDENT, TEACHER, bridge).item() == pytest.approx(GOLDEN[bridge], abs=2e-6)


@pytest.mark.parametrize(
    "bridge, expected",
    [
        # The gradient of a KL to a softmax is what the student says less what it should say.
        ("posterior", [0.25 - 0.5625, 0.125 - 0.1875, 0.625 - 0.25]),
        ("foreground", [2 / 3 - 0.75, 1 / 3 - 0.25, 0.0]),
        # d/dq of class 0: (.25 - .75) / (.25 * .75) = -8/3; of class 1: (.125 - .25) / (.125 *
        # .875) = -8/7. By the softmax, q_k (g_k - sum_j q_j g_j), sum = -.25 * 8/3 - .125 * 8/7
        # = -17/21: .25 (-8/3 + 17/21), .125 (-8/7 + 17/21), .625 * 17/21.
        ("binary", [0.25 * (-39 / 21), 0.125 * (-7 / 21), 0.625 * 17 / 21]),
    ],
)
def test_gradient_worked_by_hand(bridge, expected):
    assert gradient(STUDENT, TEACHER, bridge).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "bridge, student",
    [
        ("posterior", [log(0.4), log(0.2), log(0.4)]),  # max .6, shares 2/3 and 1/3
        ("binary", [log(0.6), log(0.3), log(0.1)]),
        ("foreground", [log(0.6), log(0.3), -5.0]),
        ("foreground", [log(0.6), log(0.3), 5.0]),
    ],
)
def test_nothing_to_learn_where_the_student_says_what_the_bridge_asks(bridge, student):
    teacher = [log(0.6 / 0.4), log(0.3 / 0.7)]
    for constant in (0.0, 7.0):  # of a softmax, a constant says nothing
        shifted = [logit + constant for logit in student]
        assert divergence(shifted, teacher, bridge).abs() < 1e-6
        assert gradient(shifted, teacher, bridge).abs().max() < 1e-6
    assert divergence([*student[1:], student[0]], teacher, bridge) > 1e-2


def test_the_bridges_do_not_ask_the_same():
    values = [divergence(STUDENT, TEACHER, bridge).item() for bridge in CLASS_BRIDGES]
    assert CLASS_BRIDGES == ("posterior", "binary", "foreground")
    assert min(abs(a - b) for a, b in itertools.combinations(values, 2)) > 0.1


def test_of_one_class_posterior_and_binary_are_the_same_question():
    # p = .75, the student's softmax (.5, .5): .75 ln 1.5 + .25 ln .5 = .130812. There is nothing
    # to choose between, so 'foreground' is 0.
    for bridge, expected in (("posterior", 0.130812), ("binary", 0.130812), ("foreground", 0.0)):
        assert divergence([0.0, 0.0], [LN3], bridge).item() == pytest.approx(expected, abs=2e-6)


def test_foreground_is_blind_to_the_background():
    teacher = random_logits(0, 50, 4)
    student = random_logits(1, 50, 5).requires_grad_()
    value = bridged_divergence(student, teacher, "foreground")
    value.sum().backward()
    assert student.grad[:, -1].eq(0).all() and student.grad[:, :-1].abs().sum(-1).gt(0).all()
    moved = student.detach() + torch.tensor([0.0] * 4 + [9.0])
    assert torch.equal(bridged_divergence(moved, teacher, "foreground"), value)
    for bridge in ("posterior", "binary"):
        change = bridged_divergence(moved, teacher, bridge) - bridged_divergence(
            student, teacher, bridge
        )
        assert change.abs().min() > 1e-3, bridge


@pytest.mark.parametrize("bridge", CLASS_BRIDGES)
def test_values_are_for_each_point_of_every_layer(bridge):
    student, teacher = random_logits(0, 3, 2, 7, 5), random_logits(1, 1, 2, 7, 4)
    values = bridged_divergence(student, teacher, bridge)
    assert values.shape == (3, 2, 7) and (values > -1e-6).all() and values.std() > 0.1
    for layer, image, point in itertools.product(range(3), range(2), range(7)):
        one = bridged_divergence(student[layer, image, point], teacher[0, image, point], bridge)
        torch.testing.assert_close(values[layer, image, point], one)


@pytest.mark.parametrize("bridge", CLASS_BRIDGES)
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_extreme_logits_are_finite(bridge, scale):
    signs = (-1.0, 0.0, 1.0)
    teachers = scale * torch.tensor(list(itertools.product(signs, repeat=2)))
    students = scale * torch.tensor(list(itertools.product(signs, repeat=3)))
    student = students[:, None].expand(-1, len(teachers), -1).clone().requires_grad_()
    values = bridged_divergence(student, teachers[None], bridge)
    assert values.isfinite().all() and (values > -1e-3).all()
    values.sum().backward()
    assert student.grad.isfinite().all() and student.grad.abs().max() < 2.001


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_extreme_logits_give_the_exact_number(scale):
    # The teacher is sure of class 0, the student of the background, by twice the scale.
    student, teacher = [-scale, -scale, scale], [scale, -scale]
    for bridge in ("posterior", "binary"):
        assert divergence(student, teacher, bridge).item() == pytest.approx(2 * scale, rel=1e-6)
        expected = [-1.0, 0.0, 1.0]
        assert gradient(student, teacher, bridge).tolist() == pytest.approx(expected, abs=1e-6)
    # Of the classes the student likes both alike.
    assert divergence(student, teacher, "foreground").item() == pytest.approx(log(2), rel=1e-6)


# --- in the loss ----------------------------------------------------------------------------------

UNIT = dict(cls_weight=1.0, l1_weight=1.0, giou_weight=1.0)


def answers(student, teacher, backgrounds):
    boxes = torch.tensor([[[[0.5, 0.5, 1.0, 1.0]]]])
    return [
        Answer(torch.tensor(logits)[None, None, None], boxes, background)
        for logits, background in zip((student, teacher), backgrounds)
    ]


def class_term(student, teacher, backgrounds, **options):
    both = answers(student, teacher, backgrounds)
    return RebalancedDistillLoss(**UNIT, **options)(*both, "x")["kd_loss_x_cls"].item()


@pytest.mark.parametrize("bridge", CLASS_BRIDGES)
def test_the_loss_bridges_where_the_student_alone_has_a_background(bridge):
    # One point, so its weight .75 is in the sum and in the normalizer; with 'points', only once.
    for options in (dict(), dict(class_term="softmax"), dict(temperature=3.0)):
        value = class_term(STUDENT, TEACHER, (True, False), class_bridge=bridge, **options)
        assert value == pytest.approx(GOLDEN[bridge], abs=2e-6)
    value = class_term(STUDENT, TEACHER, (True, False), class_bridge=bridge, normalize="points")
    assert value == pytest.approx(0.75 * GOLDEN[bridge], abs=2e-6)


def test_the_loss_bridges_nothing_else():
    for student, teacher, background in (([0.0, 0.0], TEACHER, False), (STUDENT, [0.0] * 3, True)):
        values = {
            class_term(student, teacher, (background, background), class_bridge=bridge)
            for bridge in CLASS_BRIDGES
        }
        assert len(values) == 1
    assert values.pop() == pytest.approx(
        # KL of thirds to .25, .125 and .625: -(ln .75 + ln .375 + ln 1.875) / 3
        -(log(0.75) + log(0.375) + log(1.875)) / 3,
        abs=2e-6,
    )


def test_foreground_is_the_default():
    assert class_term(STUDENT, TEACHER, (True, False)) == pytest.approx(
        GOLDEN["foreground"], abs=2e-6
    )


def test_a_teacher_with_infinite_logits_teaches_finite_numbers():
    student, teacher = answers([0.0, 0.0, 0.0], [float("inf"), float("-inf")], (True, False))
    student.cls_scores.requires_grad_()
    for bridge in CLASS_BRIDGES:
        losses = RebalancedDistillLoss(class_bridge=bridge)(student, teacher, "x")
        (grad,) = torch.autograd.grad(losses["kd_loss_x_cls"], student.cls_scores)
        assert losses["kd_loss_x_cls"].isfinite() and grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("bad", ["softmax", "", None, 1])
def test_unknown_names_are_refused(bad):
    with pytest.raises(ConfigError) as error:
        RebalancedDistillLoss(class_bridge=bad)
    message = str(error.value)
    assert "distill_loss.class_bridge must be one of 'posterior', 'binary', 'foreground'" in message
    assert repr(bad) in message and "\n" not in message
