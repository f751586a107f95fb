"""DAB-DETR: its queries are boxes that it has learnt."""

import torch
from conftest import build, dab_config, noisy
from mmdet.models.detectors import DABDETR

from kd_detr_mmdet.families import DABDETRFamily, build_family


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
