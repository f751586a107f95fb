"""DAB-DETR: its queries are boxes that it has learnt."""

import pytest
import torch
from conftest import build, dab_config, noisy
from mmdet.models.detectors import DABDETR

from kd_detr_mmdet.families import DABDETRFamily, build_family
from kd_detr_mmdet.points import DistillPointGenerator
from kd_detr_mmdet.points.generator import MIN_SIZE
from kd_detr_mmdet.utils import ConfigError


def look(detector, data):
    family = build_family(detector)
    with torch.no_grad():
        return family, family.look(data["inputs"], data["data_samples"])


def test_its_queries_are_its_learnt_boxes(batch):
    dab = noisy(dab_config()).eval()
    family, record = look(dab, batch(dab, training=False))
    points = family.queries(record)
    expected = dab.query_embedding.weight.sigmoid().expand(2, -1, -1)
    torch.testing.assert_close(points.boxes, expected, rtol=0, atol=1e-6)
    assert not points.content.any()
    assert family.num_queries == points.num_points == 12


def test_patterns_multiply_its_queries(batch):
    dab = build(dab_config(patterns=3)).eval()
    family, record = look(dab, batch(dab, training=False))
    points = family.queries(record)
    assert family.num_queries == points.num_points == 36
    # One after the other, each at all boxes.
    expected = dab.patterns.weight.repeat_interleave(12, 0).expand(2, -1, -1)
    assert expected.std() > 0.5
    assert torch.equal(points.content, expected)


def test_a_subclass_that_decodes_its_own_way_is_refused():
    class Same(DABDETR):
        pass

    class Own(DABDETR):
        def forward_decoder(self, *args, **kwargs):
            return super().forward_decoder(*args, **kwargs)

    assert DABDETRFamily.supports(Same)
    assert not DABDETRFamily.supports(Own)


def test_queries_without_a_size_are_refused():
    cfg = dab_config()
    cfg.decoder.query_dim = 2
    with pytest.raises(ConfigError, match="decoder.query_dim is 2: set it to 4"):
        build_family(build(cfg))


@pytest.mark.parametrize("size", [MIN_SIZE, 1e-5])
def test_the_smallest_random_box_can_be_asked_about_in_half_precision(batch, size):
    # mmdet's decoder divides by a box's sides: at 1e-5 the answer is infinite or NaN in float16.
    dab = build(dab_config(width=256)).eval()
    family, record = look(dab, batch(dab, training=False))
    points = DistillPointGenerator(num_general=64, seed=0).general(2, (0,))
    points.boxes[..., 2:] = size
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        answer = family.answer(record, points)
    assert answer.boxes.isfinite().all() == (size == MIN_SIZE)
