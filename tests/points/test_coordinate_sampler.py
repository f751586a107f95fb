"""A two-stage student's boxes as points: which ones, how many, on what, and drawn how."""

import random

import numpy as np
import pytest
import torch

from kd_detr_mmdet.points import CoordinateSampler, DistillPoints, generator
from kd_detr_mmdet.points.coordinate_sampler import BOXES, objects_at
from kd_detr_mmdet.utils import ConfigError

# Boxes of 0.2 x 0.2 in a grid of 5 x 5: none overlaps another.
GRID = torch.tensor([[0.1 + 0.2 * i, 0.1 + 0.2 * j, 0.2, 0.2] for j in range(5) for i in range(5)])
NONE = torch.zeros(0, 4)


def sampler(boxes="sampled", max_points=8, **options):
    return CoordinateSampler(boxes, max_points, **{"seed": 0, **options})


def sample(own, truth=None, step=(0, 0), **options):
    """The points of images with the given boxes and ground truth, shape (bs, max_points, 4)."""
    truth = [NONE] * len(own) if truth is None else truth
    points = sampler(**options).sample(own, truth, step)
    assert points.content is None
    return points.boxes


def rows(points):
    """For each point the number of the grid's box that it is; -1 for another."""
    distance = (points[:, None] - GRID).abs().amax(-1)
    return [int(d.argmin()) if d.min() < 1e-6 else -1 for d in distance]


# --- which boxes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("boxes", BOXES)
@pytest.mark.parametrize("add_ground_truth", [False, True])
def test_points_know_which_sampled_rois_they_are(boxes, add_ground_truth):
    outside = torch.tensor([[1.5, 0.5, 0.2, 0.2]])
    own = [torch.cat([GRID[:3], outside, GRID[3:6]]), GRID.flip(0), NONE]
    truth = [GRID[1:2], NONE, NONE]
    options = dict(boxes=boxes, add_ground_truth=add_ground_truth)
    points = sampler(**options).sample(own, truth, (0, 0))
    if boxes != "sampled":
        assert points.rois is None
        return
    assert points.rois.shape == (3, 8)
    first = points.rois[0].tolist()
    if add_ground_truth:  # ground truth is no RoI, and the RoI that equals it is no point
        assert first[0] == -1 and sorted(first[1:6]) == [0, 2, 4, 5, 6] and first[6:] == [-1, -1]
    else:
        assert sorted(first[:6]) == [0, 1, 2, 4, 5, 6] and first[6:] == [-1, -1]
    assert (points.rois[1] >= 0).all() and (points.rois[2] == -1).all()
    for boxes_of_image, places, rois in zip(own, points.boxes, points.rois):
        known = rois >= 0
        torch.testing.assert_close(places[known], boxes_of_image[rois[known]])


def test_half_a_percent_cut_off_is_another_roi():
    own = torch.tensor([[0.905, 0.5, 0.2, 0.2], [0.9, 0.5, 0.2, 0.2]])
    points = sampler(boxes="sampled", max_points=2).sample([own], [NONE], (0, 0))
    assert sorted(points.rois[0].tolist()) == [-1, 1]


def test_a_roi_that_was_cut_is_asked_anew():
    # The loss may sample ground truth that reaches out of the image; ending at its border is none.
    own = torch.tensor([[0.95, 0.5, 0.2, 0.2], [0.9, 0.5, 0.2, 0.2], [1 / 3, 0.5, 2 / 3, 1.0]])
    points = sampler(boxes="sampled", max_points=3).sample([own], [NONE], (0, 0))
    cut = (points.boxes[0] - torch.tensor([0.925, 0.5, 0.15, 0.2])).abs().amax(-1) < 1e-6
    assert cut.sum() == 1
    assert points.rois[0][cut].tolist() == [-1]
    assert sorted(points.rois[0][~cut].tolist()) == [1, 2]


@pytest.mark.parametrize("boxes", ["sampled", "anchors"])
def test_of_more_boxes_some_are_drawn(boxes):
    own = [GRID, GRID.flip(0)]
    points = sample(own, boxes=boxes)
    assert points.shape == (2, 8, 4) and points.dtype == torch.float32
    drawn = [rows(image) for image in points]
    for image in drawn:
        assert -1 not in image and len(set(image)) == 8
    assert drawn[0] != list(range(8))  # not the first ones
    assert sorted(drawn[0]) != sorted(24 - i for i in drawn[1])  # each image has its own draw
    # Every box is drawn sooner or later: 40 draws of 8 of 25 leave one out with 25 * .68^40 < 1e-5.
    found = {i for step in range(40) for i in rows(sample(own, boxes=boxes, step=(step, 0))[0])}
    assert found == set(range(25))


def test_of_more_proposals_the_best_are_taken_in_their_order():
    points = sample([GRID, GRID.flip(0)], boxes="proposals")
    assert rows(points[0]) == list(range(8))
    assert rows(points[1]) == list(range(24, 16, -1))


@pytest.mark.parametrize("boxes", BOXES)
@pytest.mark.parametrize("number", [8, 3, 1, 0])
def test_an_image_with_few_boxes_is_filled_with_general_points(boxes, number):
    points = sample([GRID, GRID[:number]], boxes=boxes)
    assert points.shape == (2, 8, 4)
    found = rows(points[1])
    assert sorted(found) == [-1] * (8 - number) + list(range(number))
    assert found[number:] == [-1] * (8 - number)
    filling = points[1, number:]
    assert (filling >= 0).all() and (filling <= 1).all()
    distance = torch.cdist(points[1], points[1]) + 9 * torch.eye(8)
    assert distance.min() > 0  # no point counts twice
    if number == 0:
        assert points[1].std(0).min() > 0.05


def test_no_image_has_boxes():
    points = sample([NONE, NONE], max_points=5000)
    assert points.shape == (2, 5000, 4)
    # U(0, 1) in every coordinate: mean .5, share below .1 of .1
    assert points.mean((0, 1)).tolist() == pytest.approx([0.5] * 4, abs=0.02)
    assert (points < 0.1).float().mean((0, 1)).tolist() == pytest.approx([0.1] * 4, abs=0.02)
    assert torch.cdist(points[0], points[1]).min() > 0
    centred = sample([NONE], max_points=5000, distribution="normal")
    assert (centred < 0.1).float().mean() < 0.03


def test_what_reaches_beyond_the_image_is_cut_and_what_is_outside_is_dropped():
    own = torch.tensor(
        [
            [0.0, 0.5, 0.2, 0.2],  # its left half is outside: x from 0 to .1
            [1.0, 1.0, 0.4, 0.2],  # a quarter is inside: x from .8, y from .9
            [0.5, 0.5, 3.0, 2.0],  # the whole image
            [1.3, 0.5, 0.2, 0.2],  # outside
            [0.5, -0.1, 0.2, 0.2],  # touches the border from outside
            [0.5, 0.5, 0.0, 0.2],  # without area
            [0.5, 0.5, 5e-4, 0.2],  # a sliver, as at the border after a cut
            [float("nan"), 0.5, 0.2, 0.2],
            [0.3, 0.3, 0.2, 0.4],  # inside, left as it is
        ]
    )
    points = sample([own], boxes="proposals", max_points=4)[0]
    expected = [
        [0.05, 0.5, 0.1, 0.2],
        [0.9, 0.95, 0.2, 0.1],
        [0.5, 0.5, 1.0, 1.0],
        [0.3, 0.3, 0.2, 0.4],
    ]
    torch.testing.assert_close(points, torch.tensor(expected), rtol=0, atol=1e-6)


def test_points_ask_for_no_gradient_and_are_float32():
    points = sample([GRID.double().requires_grad_()])
    assert not points.requires_grad and points.dtype == torch.float32


# --- ground truth ---------------------------------------------------------------------------------

OTHERS = torch.tensor([[0.31, 0.32, 0.33, 0.34], [0.71, 0.62, 0.23, 0.14]])


@pytest.mark.parametrize("boxes", BOXES)
def test_the_ground_truth_comes_first(boxes):
    points = sample([GRID, GRID], [OTHERS, NONE], boxes=boxes, add_ground_truth=True)
    torch.testing.assert_close(points[0, :2], OTHERS)
    assert -1 not in rows(points[0, 2:]) and len(set(rows(points[0, 2:]))) == 6
    assert -1 not in rows(points[1])
    without = sample([GRID, GRID], [OTHERS, NONE], boxes=boxes)
    assert -1 not in rows(without[0])


def test_more_ground_truth_than_points():
    points = sample([OTHERS], [GRID], add_ground_truth=True)
    assert rows(points[0]) == list(range(8))


def test_ground_truth_that_the_loss_has_sampled_is_no_point_twice():
    truth = GRID[[3, 7]]
    for options in (dict(boxes="proposals"), dict(max_points=25), dict(foreground_fraction=0.5)):
        points = sample([GRID], [truth], add_ground_truth=True, **options)[0]
        assert rows(points)[:2] == [3, 7]
        found = [row for row in rows(points) if row >= 0]
        assert len(found) == len(set(found)), options
    assert len(found) == 8


# --- on objects and beside ------------------------------------------------------------------------

# Ten boxes, the best first. The ground truth is x and y from .2 to .6, area .16.
TRUTH = torch.tensor([[0.4, 0.4, 0.4, 0.4]])
BALANCE = torch.tensor(
    [
        [0.4, 0.4, 0.4, 0.4],  # IoU 1
        [0.8, 0.8, 0.2, 0.2],  # 0
        [0.4, 0.4, 0.4, 0.21],  # .084 / .16 = .525
        [0.4, 0.4, 0.4, 0.19],  # .475
        [0.5, 0.4, 0.4, 0.4],  # .3 * .4 / (.32 - .12) = .6
        [0.6, 0.4, 0.4, 0.4],  # .2 * .4 / (.32 - .08) = .33
        [0.4, 0.4, 0.5, 0.5],  # .16 / .25 = .64
        [0.4, 0.4, 0.8, 0.8],  # .16 / .64 = .25
        [0.1, 0.9, 0.1, 0.1],  # 0
        [0.9, 0.1, 0.1, 0.1],  # 0
    ]
)
ON_OBJECT = [0, 2, 4, 6]


def balance(points):
    distance = (points[:, None] - BALANCE).abs().amax(-1)
    return [int(d.argmin()) if d.min() < 1e-6 else None for d in distance]


@pytest.mark.parametrize(
    "max_points, fraction, expected",
    [
        (6, None, [0, 1, 2, 3, 4, 5]),
        (6, 0.5, [0, 2, 4, 1, 3, 5]),
        (6, 0.25, [0, 1, 3, 5, 7, 8]),  # 1.5 rounded down
        (6, 0, [1, 3, 5, 7, 8, 9]),
        (4, 1.0, [0, 2, 4, 6]),
        (6, 1, [0, 2, 4, 6, 1, 3]),  # no more are on objects
        (8, 0.125, [0, 1, 3, 5, 7, 8, 9, None]),  # general points rather than too many
    ],
)
def test_foreground_golden_sets(max_points, fraction, expected):
    options = dict(boxes="proposals", max_points=max_points, foreground_fraction=fraction)
    assert balance(sample([BALANCE], [TRUTH], **options)[0]) == expected


def test_a_share_that_no_float_can_hold_is_not_one_point_less():
    own = torch.cat([TRUTH.expand(100, 4), GRID[-1:].expand(100, 4)])
    options = dict(boxes="proposals", max_points=100, foreground_fraction=0.29)
    points = sample([own], [TRUTH], **options)[0]
    assert ((points - TRUTH).abs() < 1e-6).all(-1).sum() == 29  # 0.29 * 100 is 28.999999999999996


@pytest.mark.parametrize("boxes", ["sampled", "anchors"])
def test_foreground_among_drawn_boxes(boxes):
    found = set()
    for step in range(20):
        options = dict(boxes=boxes, max_points=5, foreground_fraction=0.4, step=(step, 0))
        drawn = balance(sample([BALANCE], [TRUTH], **options)[0])
        assert len(set(drawn)) == 5
        assert sum(row in ON_OBJECT for row in drawn) == 2
        found |= set(drawn)
    assert found == set(range(10))


def test_the_ground_truth_counts_as_foreground():
    options = dict(boxes="proposals", max_points=6, add_ground_truth=True)
    truth = torch.cat([TRUTH, GRID[-1:]])
    points = sample([BALANCE], [truth], foreground_fraction=0.5, **options)[0]
    torch.testing.assert_close(points[:2], truth)
    assert balance(points)[2:] == [2, 1, 3, 5]  # one more on an object
    points = sample([BALANCE], [truth], foreground_fraction=0.0, **options)[0]
    assert balance(points)[2:] == [1, 3, 5, 7]


def test_without_objects_all_is_background():
    points = sample([BALANCE], [NONE], boxes="proposals", foreground_fraction=0.25)
    assert balance(points[0]) == list(range(8))
    points = sample([NONE], [TRUTH], boxes="proposals", foreground_fraction=0.25)
    assert points.shape == (1, 8, 4) and balance(points[0]) == [None] * 8


# --- random numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0])
def test_the_draw_is_a_function_of_seed_rank_and_step(seed, monkeypatch):
    def drawn(step=(5, 0), seed=seed):
        return sample([GRID, GRID[:2]], [OTHERS, NONE], step=step, seed=seed)

    torch.manual_seed(7)
    base = drawn()
    torch.rand(3)
    assert torch.equal(base, drawn())
    one = sampler(seed=seed)
    one.sample([GRID], [NONE], (4, 0))
    again = one.sample([GRID, GRID[:2]], [OTHERS, NONE], (5, 0)).boxes
    assert torch.equal(base, again)  # what was drawn before plays no part
    others = [drawn((6, 0)), drawn((5, 1)), drawn(seed=1)]
    monkeypatch.setattr(generator, "get_rank", lambda: 1)
    others.append(drawn())
    draws = [base, *others]
    for i, first in enumerate(draws):
        for second in draws[:i]:
            assert rows(first[0]) != rows(second[0])
            assert torch.cdist(first[1, 2:], second[1, 2:]).min() > 0


@pytest.mark.parametrize("boxes", BOXES)
def test_no_global_random_state_moves(boxes):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    sample([GRID, NONE], [OTHERS, NONE], boxes=boxes, foreground_fraction=0.5, seed=None)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_what_fills_up_is_not_the_general_set():
    one = sampler(num_general=8)
    filling = one.sample([NONE, NONE], [NONE, NONE], (3, 0)).boxes
    assert torch.cdist(filling, one.general(2, (3, 0)).boxes).min() > 0


# --- sets and options -----------------------------------------------------------------------------


def test_the_set_alone_or_with_the_others():
    queries = DistillPoints(torch.rand(2, 7, 4))
    assert CoordinateSampler().set_names == ("roi",)
    assert CoordinateSampler()(queries, (0, 0)) == {}
    both = CoordinateSampler(num_general=5, specific=True)
    assert both.set_names == ("roi", "specific", "general")
    sets = both(queries, (0, 0))
    assert list(sets) == ["specific", "general"]
    assert sets["specific"] is queries and sets["general"].num_points == 5


def test_defaults():
    points = CoordinateSampler().sample([GRID], [OTHERS], (0, 0))
    assert points.num_points == 300
    assert rows(points.boxes[0]).count(-1) == 275


@pytest.mark.parametrize(
    "options, named",
    [
        *[(dict(boxes=bad), "points.boxes must be one of") for bad in ("rois", None, 3)],
        *[(dict(max_points=bad), "points.max_points") for bad in (0, -1, True, 3.0, "300", None)],
        *[(dict(add_ground_truth=bad), "points.add_ground_truth") for bad in (1, "yes", None)],
        *[
            (dict(foreground_fraction=bad), "points.foreground_fraction")
            for bad in (-0.1, 1.1, float("nan"), True, "0.5", [0.5])
        ],
        (dict(num_general=-1), "points.num_general"),
        (dict(specific=1), "points.specific"),
        (dict(distribution="gauss"), "points.distribution"),
        (dict(seed=1.5), "points.seed"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ConfigError) as error:
        CoordinateSampler(**options)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


# --- on which object ------------------------------------------------------------------------------


def test_a_box_is_on_the_object_that_it_overlaps_by_half():
    truth = torch.tensor([[0.25, 0.5, 0.5, 0.4], [0.75, 0.5, 0.5, 0.4]])
    # The second itself; half of the first (IoU 0.5); a fifth of it; nothing of any.
    boxes = [[0.75, 0.5, 0.5, 0.4], [0.125, 0.5, 0.25, 0.4], [0.05, 0.5, 0.1, 0.4]]
    boxes = torch.tensor([*boxes, [0.5, 0.1, 0.1, 0.1]])
    assert objects_at(boxes, truth).tolist() == [1, 0, -1, -1]
    assert objects_at(boxes, truth[:0]).tolist() == [-1] * 4
