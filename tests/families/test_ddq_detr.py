"""DDQ-DETR: distinct queries at points, whatever its training keeps beside them."""

import pytest
import torch
from conftest import build, ddq_config, noisy

from kd_detr_mmdet.families import build_family
from kd_detr_mmdet.points import DistillPoints


def overlapping(num_queries):
    """A detector whose first layer makes large boxes; no weight depends on its queries' number."""
    cfg = ddq_config(num_queries=num_queries)
    cfg.dqs_cfg.iou_threshold = 0.2
    detector = noisy(cfg)
    detector.bbox_head.reg_branches[0][-1].bias.data[2:] += 3
    return detector


@pytest.fixture
def many():
    return overlapping(20)


def record_of(detector, data, training=False):
    family = build_family(detector.train(training))
    with torch.no_grad():
        if not training:
            return family, family.look(data["inputs"], data["data_samples"])
        with family.recording() as record:
            detector.loss(data["inputs"], data["data_samples"])
    return family, record


def test_as_many_points_as_asked_are_selected_among(many, batch):
    # Asked at the 20 queries of its twin, a detector of 12 must select among all 20 as the twin.
    few = overlapping(12)
    few.load_state_dict(many.state_dict())
    data = batch(few)
    family, record = record_of(few, data)
    twin, theirs = record_of(many, data)
    # Queries that were not selected do not see each other; the last ones are among them.
    may_see = many.cache_dict["distinct_query_mask"][0]
    assert not may_see[:, 12:].all()
    with torch.no_grad():
        answer, expected = family.answer(record, twin.queries(theirs)), twin.own_answer(theirs)
    for ours, mine in zip(answer[:2], expected[:2]):
        torch.testing.assert_close(ours, mine, rtol=0, atol=1e-5)


def test_in_training_its_own_queries_are_between_denoising_and_dense(many, batch):
    family, record = record_of(many, batch(many, num_items=[2, 1]), training=True)
    query, dn_mask = record["inputs"]["query"], record["inputs"]["dn_mask"]
    # 8 denoising queries in 4 groups of 2 (at most 2 boxes), each positive and negative: 16,
    # then 20 of its own and 30 dense ones (half as many again).
    assert query.size(1) == 16 + 20 + 30
    assert family.own_rows(record) == slice(16, 36)
    assert not dn_mask[16:36, 16:36].any() and dn_mask[16:36, :16].all() and dn_mask[36:, :36].all()
    assert torch.equal(family.queries(record).content, query[:, 16:36])
    answer = family.own_answer(record)
    assert answer.boxes.shape == (2, 2, 20, 4)
    whole = many.bbox_head(**record["outputs"])
    assert torch.equal(answer.cls_scores, whole[0][:, :, 16:36])


@pytest.mark.parametrize("fails", [False, True])
def test_its_book_is_put_back(many, batch, monkeypatch, fails):
    family, record = record_of(many, batch(many), training=True)
    book, parts = many.cache_dict, (many.decoder, many.bbox_head)
    before, info = dict(book), list(book["dis_query_info"])
    assert before["num_dense_queries"] == 30 and len(before["distinct_query_mask"]) == 1
    seen = []

    def layer(*args, **kwargs):
        seen.append((dict(book), [part.training for part in parts]))
        return 1 / 0 if fails else kwargs.get("query", args[0] if args else None)

    monkeypatch.setattr(many.decoder.layers[1], "forward", layer)
    points = DistillPoints(torch.full((2, 5, 4), 0.5), torch.ones(2, 5, 32))
    if fails:
        with pytest.raises(ZeroDivisionError):
            family.answer(record, points)
    else:
        family.answer(record, points)
    # Within, it works as at inference; afterwards, as if nothing had been asked.
    (within,) = seen
    assert within[0]["dis_query_info"] == [0, 5] and within[1] == [False, False]
    assert many.cache_dict is book and book.keys() == before.keys()
    assert all(book[key] is value for key, value in before.items())
    assert book["dis_query_info"] == info != [0, 5]
    assert [part.training for part in parts] == [True, True]
    assert all(module.cache_dict is book for module in many.modules())


def test_of_several_selections_the_last_counts():
    """mmdet notes one before each layer but the first, for each head, and predicts by the last."""
    family = build_family(build(ddq_config(decoder_layers=3)))
    first = torch.tensor([[True, True, False], [False, True, True]])
    last = torch.tensor([[True, False, False], [False, False, True]])
    of_two_heads = [m.repeat_interleave(2, 0)[:, None].expand(-1, 3, -1) for m in (first, last)]
    family.detector.cache_dict.update(num_heads=2, distinct_query_mask=of_two_heads)
    assert torch.equal(family._distinct(), last)


def test_training_adds_names_to_its_checkpoint_in_plain_mmdet(batch):
    """So a trained file, distilled or not, is refused by a fresh model with strict=True."""
    detector = build(ddq_config()).train()
    fresh = set(detector.state_dict())
    data = batch(detector)
    detector.loss(data["inputs"], data["data_samples"])
    added = set(detector.state_dict()) - fresh
    assert added and all(name.startswith("decoder.aux_reg_branches.") for name in added)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        build(ddq_config()).load_state_dict(detector.state_dict(), strict=True)
