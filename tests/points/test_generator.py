"""The points generator: what it draws, and that nothing else notices."""

import random

import numpy as np
import pytest
import torch

from kd_detr_mmdet.points import DistillPointGenerator, DistillPoints, generator
from kd_detr_mmdet.points.generator import MIN_SIZE
from kd_detr_mmdet.utils import ConfigError


@pytest.fixture
def queries():
    return DistillPoints(torch.rand(2, 7, 4), torch.rand(2, 7, 8))


def draw(step=(0, 0), batch_size=2, **options):
    return DistillPointGenerator(**{"seed": 0, **options}).general(batch_size, step).boxes


def shares(values, bins):
    """Share of the values that each of equal bins of [0, 1] holds."""
    return torch.histc(values, bins, 0.0, 1.0) / values.numel()


def test_both_sets_by_default_with_300_general_points(queries):
    sets = DistillPointGenerator()(queries, (0, 0))
    assert list(sets) == ["specific", "general"]
    assert sets["specific"] is queries
    assert sets["general"].boxes.shape == (2, 300, 4)
    assert sets["general"].boxes.dtype == torch.float32
    assert sets["general"].content is None


def test_a_set_can_be_left_out(queries):
    assert list(DistillPointGenerator(num_general=0)(queries, (0,))) == ["specific"]
    only_general = DistillPointGenerator(num_general=5, specific=False)(queries, (0,))
    assert list(only_general) == ["general"]
    assert only_general["general"].num_points == 5


def test_a_uniform_draw_covers_every_coordinate_evenly():
    # 20,000 values a coordinate, 0.1 in each of 10 bins with a standard error of 0.002. A sigmoid
    # after U(0, 1) would leave all but [0.5, 0.73] empty.
    boxes = draw(num_general=10_000)
    assert boxes.min() >= 0 and boxes.max() <= 1
    for coordinate in range(4):
        assert (shares(boxes[..., coordinate], 10) - 0.1).abs().max() < 0.012, coordinate
    # But no side is shorter than a pixel of 1,000: about 20 of these 20,000 would be.
    assert boxes[..., 2:].min() == MIN_SIZE > boxes[..., :2].min()
    # The coordinates are independent: no box is drawn from a single number.
    assert (torch.corrcoef(boxes.flatten(0, 1).T) - torch.eye(4)).abs().max() < 0.05


def test_a_normal_draw_is_denser_in_the_centre():
    # sigmoid(N(0, 1)): |x - 0.5| < 0.1 holds for |z| < ln(0.6/0.4) = 0.405, a share of 0.315;
    # below 0.1 for z < -ln 9 = -2.197, a share of 0.014 (N(0, 1) clipped would have 0.54 there).
    boxes = draw(num_general=10_000, distribution="normal")
    assert boxes.min() > 0 and boxes.max() < 1
    for coordinate in range(4):
        values = boxes[..., coordinate]
        assert ((values - 0.5).abs() < 0.1).float().mean().item() == pytest.approx(0.315, abs=0.015)
        assert (values < 0.1).float().mean().item() == pytest.approx(0.014, abs=0.005)
        assert (values > 0.9).float().mean().item() == pytest.approx(0.014, abs=0.005)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_images_steps_ranks_and_seeds_get_points_of_their_own(distribution, monkeypatch):
    base = draw(distribution=distribution)
    assert not torch.equal(base[0], base[1])
    others = [
        draw(distribution=distribution, step=(1, 0)),  # the next iteration
        draw(distribution=distribution, step=(0, 1)),  # another call within the iteration
        draw(distribution=distribution, seed=1),
    ]
    monkeypatch.setattr(generator, "get_rank", lambda: 1)
    others.append(draw(distribution=distribution))
    draws = [base, *others]
    for i, first in enumerate(draws):
        for second in draws[i + 1 :]:
            # Not only unequal: no box of one is a box of the other.
            assert torch.cdist(first.flatten(0, 1), second.flatten(0, 1)).min() > 0


def test_the_draw_is_reproducible_from_the_seed():
    first = draw(step=(5, 0))
    torch.rand(3)  # what was drawn elsewhere in between plays no part
    assert torch.equal(first, draw(step=(5, 0)))
    one = DistillPointGenerator(seed=0)
    one.general(2, (4, 0))  # nor does what was drawn by the same generator: a resumed run
    assert torch.equal(first, one.general(2, (5, 0)).boxes)


def test_without_a_seed_the_draw_follows_torch():
    def drawn(seed):
        torch.manual_seed(seed)
        torch.rand(seed)  # the seed counts, not what was drawn since
        return draw(seed=None)

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    torch.manual_seed(3)
    torch.rand(1)
    assert torch.equal(draw(seed=None), drawn(3))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 + 5])
def test_any_whole_number_is_a_seed(seed):
    assert torch.equal(draw(seed=seed), draw(seed=seed))
    assert not torch.equal(draw(seed=seed), draw(seed=0))


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("seed", [None, 0])
def test_no_global_random_state_moves(queries, distribution, seed):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    DistillPointGenerator(distribution=distribution, seed=seed)(queries, (3, 0))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_points_are_drawn_on_the_cpu_and_moved_to_the_queries():
    boxes = DistillPointGenerator(seed=0).general(2, (0, 0), torch.device("meta")).boxes
    assert boxes.device.type == "meta"


@pytest.mark.parametrize(
    "options, named",
    [
        *[(dict(num_general=bad), "points.num_general") for bad in (-1, True, 3.0, "300", None)],
        *[(dict(specific=bad), "points.specific") for bad in (1, "yes", None)],
        (dict(proposals=1), "points.proposals must be True or False, got 1"),
        *[(dict(distribution=bad), "points.distribution") for bad in ("gauss", None, 1)],
        *[(dict(seed=bad), "points.seed") for bad in (1.5, "0", True)],
        (dict(num_general=0, specific=False), "nothing to distil"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ConfigError) as error:
        DistillPointGenerator(**options)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
