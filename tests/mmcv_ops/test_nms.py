"""NMS of the stand-in: which boxes stay, and in which order, against compiled operators."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from kd_detr_mmdet.mmcv_ops import nms as ours
from kd_detr_mmdet.mmcv_ops.stand_in import StandIn
from kd_detr_mmdet.mmcv_ops.torchvision_ops import torchvision_ops

# mmcv.ops has a function of the module's name in its place.
mmcv_nms = importlib.import_module("mmcv.ops.nms")

NUMBERS = torch.arange(12)
X1, Y1 = NUMBERS * 7 % 11, NUMBERS * 5 % 7
BOXES = torch.stack((X1, Y1, X1 + 4 + NUMBERS % 3, Y1 + 3 + NUMBERS * 2 % 4), dim=1).float()
SCORES = {"distinct": (NUMBERS * 7 % 12).float(), "ties": (NUMBERS % 3).float()}
# Produced by the compiled CPU kernel of mmcv 2.3.6 for (scores, threshold, offset).
KEPT = {
    ("distinct", 0.1, 0): [5, 10, 3, 1, 0],
    ("distinct", 0.1, 1): [5, 10, 3, 0],
    ("distinct", 0.3, 0): [5, 10, 3, 1, 11, 2, 0],
    ("distinct", 0.3, 1): [5, 10, 3, 1, 0],
    ("distinct", 0.5, 0): [5, 10, 3, 8, 1, 6, 11, 4, 9, 2, 7, 0],
    ("distinct", 0.5, 1): [5, 10, 3, 1, 6, 11, 4, 9, 2, 7, 0],
    ("ties", 0.1, 0): [2, 11, 1, 0, 3],
    ("ties", 0.1, 1): [2, 11, 4, 0, 3],
    ("ties", 0.3, 0): [2, 5, 11, 1, 7, 0, 3],
    ("ties", 0.3, 1): [2, 8, 1, 10, 0, 3],
    ("ties", 0.5, 0): [2, 5, 8, 11, 1, 4, 7, 10, 0, 3, 6, 9],
    ("ties", 0.5, 1): [2, 5, 11, 1, 4, 7, 10, 0, 3, 6, 9],
}


@pytest.fixture
def own_code(monkeypatch):
    """Take our own code through mmcv's function, whatever is installed."""
    monkeypatch.setattr(ours, "torchvision_ops", lambda: None)
    monkeypatch.setattr(mmcv_nms, "ext_module", ours)


@pytest.mark.parametrize("block", [1, 5, ours.BLOCK])  # one box, several blocks, one block
@pytest.mark.parametrize("case", KEPT, ids=str)
def test_kept_boxes_equal_mmcv(own_code, monkeypatch, case, block):
    monkeypatch.setattr(ours, "BLOCK", block)
    scores, threshold, offset = case
    assert ours.nms(BOXES, SCORES[scores], threshold, offset).tolist() == KEPT[case]


# Produced by the compiled CPU kernel of mmcv 2.3.6.
@pytest.mark.parametrize(("threshold", "kept"), [(0.59, [0]), (0.6, [0, 1]), (0.61, [0, 1])])
@pytest.mark.parametrize("source", ["own code", "torchvision"])
def test_box_exactly_at_the_threshold_stays(monkeypatch, source, threshold, kept):
    if source == "own code":
        monkeypatch.setattr(ours, "torchvision_ops", lambda: None)
    elif torchvision_ops() is None:
        pytest.skip("torchvision does not import")
    boxes = torch.tensor([[0, 0, 10, 1], [0, 0, 6, 1.0]])
    assert ours.nms(boxes, torch.tensor([1.0, 0.5]), threshold, 0).tolist() == kept


def test_empty_boxes_stay_and_offset_makes_them_one_pixel(own_code):
    boxes = torch.full((2, 4), 3.0)
    scores = torch.tensor([0.5, 1.0])
    assert ours.nms(boxes, scores, 0.5, 0).tolist() == [1, 0]
    assert ours.nms(boxes, scores, 0.5, 1).tolist() == [1]


def test_equal_scores_keep_the_order_of_the_input(own_code):
    corner = torch.arange(500.0) * 10
    boxes = torch.stack((corner, corner, corner + 5, corner + 5), dim=1)
    kept = ours.nms(boxes, torch.arange(500) % 2, 0.5, 0)
    assert kept.tolist() == [*range(1, 500, 2), *range(0, 500, 2)]


@pytest.mark.parametrize("offset", [0, 1])
def test_no_boxes(own_code, offset):
    kept = ours.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, offset)
    assert kept.shape == (0,)
    assert kept.dtype == torch.long


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(own_code, dtype):
    kept = ours.nms(BOXES.to(dtype), SCORES["distinct"].to(dtype), 0.3, 0)
    assert kept.tolist() == KEPT["distinct", 0.3, 0]


def test_through_mmcv(own_code):
    dets, kept = mmcv_nms.nms(BOXES, SCORES["distinct"], 0.3, score_threshold=0.5, max_num=3)
    assert kept.tolist() == [5, 10, 3]
    assert torch.equal(dets, torch.cat((BOXES, SCORES["distinct"][:, None]), dim=1)[kept])
    # Each box a class of its own: nothing goes.
    dets, kept = mmcv_nms.batched_nms(
        BOXES, SCORES["distinct"], NUMBERS, dict(type="nms", iou_threshold=0.1)
    )
    assert kept.tolist() == SCORES["distinct"].argsort(descending=True).tolist()


def test_torchvision_is_taken_without_offset_only(monkeypatch):
    seen = []

    def fake(boxes, scores, threshold):
        seen.append((boxes.dtype, scores.dtype, threshold))
        return torch.tensor([7])

    monkeypatch.setattr(ours, "torchvision_ops", lambda: SimpleNamespace(nms=fake))
    scores = SCORES["distinct"]
    assert ours.nms(BOXES.half(), scores, 0.1, 0).tolist() == [7]
    assert seen == [(torch.float32, torch.float32, torch.tensor(0.1).item())]
    assert ours.nms(BOXES, scores, 0.1, 1).tolist() == KEPT["distinct", 0.1, 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "offset"), [("mmcv", 0), ("mmcv", 1), ("torchvision", 0)])
def test_equals_compiled_operator(monkeypatch, name, offset, seed):
    if name == "mmcv" and isinstance(sys.modules["mmcv._ext"], StandIn):
        pytest.skip("mmcv is not compiled")
    if name == "torchvision" and torchvision_ops() is None:
        pytest.skip("torchvision does not import")
    compiled = sys.modules["mmcv._ext"] if name == "mmcv" else ours
    rng = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (300, 2), generator=rng)
    size = torch.randint(0, 20, (300, 2), generator=rng)
    boxes = torch.cat((corner, corner + size), dim=1).float()  # whole numbers: IoUs hit thresholds
    # Distinct scores: mmcv's order of equal ones depends on the version of PyTorch.
    scores = torch.randperm(300, generator=rng).float()
    for threshold in (0.1, 0.5, 0.6):
        expected = compiled.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        with monkeypatch.context() as patch:
            patch.setattr(ours, "torchvision_ops", lambda: None)
            kept = ours.nms(boxes, scores, threshold, offset)
        assert kept.tolist() == expected.tolist()
