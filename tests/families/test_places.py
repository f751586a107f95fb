"""Where each model really looks: measured in its first decoder layer, not asked of the family.

Every family is asked at the same points, so this holds for any pair of them.
"""

import math

import pytest
import torch
from conftest import FAMILY_CONFIGS, TEACHER, dino_config, noisy

from kd_detr_mmdet.families import build_family, share_content
from kd_detr_mmdet.points import DistillPoints

WITH_PLACES = [name for name in FAMILY_CONFIGS if name != "detr"]
CENTRES_ONLY = ("deformable", "refine", "conditional")
SHAPES = dict(padded=((3, 64, 96), (3, 48, 80)), unpadded=((3, 64, 96), (3, 64, 96)))


@pytest.fixture(scope="module")
def detectors():
    """Makes a detector of a family by name and seed, once."""
    made = {}

    def make(name, seed=1):
        if (name, seed) not in made:
            cfg = dino_config(**TEACHER) if name == "teacher" else FAMILY_CONFIGS[name]
            made[name, seed] = noisy(cfg, seed).eval()
        return made[name, seed]

    return make


def look(detector, data):
    family = build_family(detector)
    with torch.no_grad():
        return family, family.look(data["inputs"], data["data_samples"])


def encoded(sines):
    """The coordinates whose sine encoding this is, (..., k * n) for ``y, x[, w, h]``: (..., k).

    Of each coordinate c, two of the n numbers are sin and cos of 2 pi c / 10000^(2 / n).
    """
    num_feats = sines.size(-1) // num_coordinates(sines)
    parts = sines.unflatten(-1, (-1, num_feats))
    angles = torch.atan2(parts[..., 2], parts[..., 3]) % (2 * math.pi)
    y, x, *sizes = (angles / (2 * math.pi) * 10_000 ** (2 / num_feats)).unbind(-1)
    return torch.stack([x, y, *sizes], -1)


def num_coordinates(sines):
    return {64: 4, 256: 2}[sines.size(-1)]  # 4 x 16 for a width of 32, 2 x 128 for one of 256


def first_look(name, detector, record, ask):
    """The places (bs, M, 2 or 4) that the first layer is told while ``ask()`` runs."""
    layer, seen = detector.decoder.layers[0], []
    module, argument = dict(
        dab=(detector.decoder, None),
        conditional=(layer, "ref_sine_embed"),
    ).get(name, (layer.cross_attn, "reference_points"))
    if name == "dab":
        module = detector.decoder.ref_point_head
    hook = module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs[argument] if argument else args[0]),
        with_kwargs=True,
    )
    with hook, torch.no_grad():
        ask()
    told = seen[0]
    if argument != "reference_points":
        return encoded(told)
    # For every level, times the share of the padded image that is the image.
    ratios = record["inputs"]["valid_ratios"].repeat(1, 1, told.size(-1) // 2)[:, None]
    places = told / ratios
    assert torch.allclose(places, places[:, :, :1], atol=1e-6)
    return places[:, :, 0]


def test_the_probe_reads_mmdets_encoding():
    from mmdet.models.layers import coordinate_to_encoding

    boxes = torch.tensor([[[0.0, 0.25, 0.5, 1.0], [0.9, 0.1, 0.75, 0.3]]])
    read = encoded(coordinate_to_encoding(boxes, num_feats=16))
    torch.testing.assert_close(read, boxes, rtol=0, atol=1e-5)
    read = encoded(coordinate_to_encoding(boxes[..., :2], num_feats=128))
    torch.testing.assert_close(read, boxes[..., :2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("kind", ["general", "of a DINO", "of its own family", "foreign content"])
@pytest.mark.parametrize("name", WITH_PLACES)
def test_it_looks_at_the_points_boxes(name, kind, shapes, detectors, batch):
    detector = detectors(name)
    data = batch(detector, SHAPES[shapes], training=False)
    family, record = look(detector, data)
    assert (record["inputs"]["memory_mask"] is None) == (shapes == "unpadded") or name in (
        "dab",
        "conditional",
    )
    if kind == "of its own family":
        teacher, theirs = look(detectors(name, seed=2), data)
        share_content(family, teacher, "auto")
        points = teacher.queries(theirs)
    elif kind == "of a DINO":
        teacher, theirs = look(detectors("teacher"), data)
        share_content(family, teacher, "auto")
        points = teacher.queries(theirs)
    else:
        generator = torch.Generator().manual_seed(0)
        boxes = torch.rand(2, 9, 4, generator=generator)
        content = None
        if kind == "foreign content" and family.content_dims:
            content = torch.randn(2, 9, family.content_dims, generator=generator)
        points = DistillPoints(boxes, content)
    places = first_look(name, detector, record, lambda: family.answer(record, points))
    dims = 2 if name in CENTRES_ONLY else 4
    assert places.shape == (2, points.num_points, dims)
    torch.testing.assert_close(places, points.boxes[..., :dims], rtol=0, atol=1e-4)
    if kind != "of its own family":
        # A second sigmoid on the way would squeeze all of them into [0.5, 0.73].
        assert points.boxes[..., :dims].std() > 0.1


@pytest.mark.parametrize("name", WITH_PLACES)
def test_its_own_queries_are_the_places_that_it_looks_at_by_itself(name, detectors, batch):
    detector = detectors(name)
    data = batch(detector, training=False)
    family, record = look(detector, data)
    places = first_look(name, detector, record, lambda: look(detector, data))
    boxes = family.queries(record).boxes
    assert boxes.min() >= 0 and boxes.max() <= 1
    torch.testing.assert_close(boxes[..., : places.size(-1)], places, rtol=0, atol=1e-4)
    if places.size(-1) == 2:  # the sizes are what its first layer answers there
        assert torch.equal(boxes[..., 2:], family.own_answer(record).boxes[0, ..., 2:])


@pytest.mark.parametrize("name", WITH_PLACES)
def test_a_family_that_moves_the_boxes_is_stopped(name, detectors, batch, monkeypatch):
    detector = detectors(name)
    family, record = look(detector, batch(detector, training=False))
    generator = torch.Generator().manual_seed(0)
    points = DistillPoints(torch.rand(2, 9, 4, generator=generator))
    decode = family.decode
    with torch.no_grad():
        family.answer(record, points)
        for move in (torch.sigmoid, lambda boxes: (boxes + 0.01) % 1):
            monkeypatch.setattr(
                family,
                "decode",
                lambda record, boxes, *more, m=move: decode(record, m(boxes), *more),
            )
            with pytest.raises(RuntimeError, match="did not look at the distillation points' box"):
                family.answer(record, points)
