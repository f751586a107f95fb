"""ONNX models: every family that is said to be exported, and every reason why one is not."""

import functools
import json
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import FAMILY_CONFIGS, detr_config, dino_config, noisy, two_stage_config

from kd_detr_mmdet.families.base import swapped
from kd_detr_mmdet.utils.errors import ConfigError
from kd_detr_mmdet.utils.onnx_export import (
    BOX_TOLERANCE,
    SCORE_TOLERANCE,
    Difference,
    check_equal,
    compare,
    difference,
    export_onnx,
    noise,
)

SIZE = (96, 64)
CLASSES = ("disc", "square", "triangle", "ring")
SLOW = ("refine", "two_stage")
FAMILIES = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in FAMILY_CONFIGS
    if name != "ddq"
]


@functools.cache
def exported(family):
    """A detector of a family, and its ONNX model."""
    detector = noisy(FAMILY_CONFIGS[family]).eval()
    return detector, export_onnx(detector, SIZE, CLASSES)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_says_what_pytorch_says(family):
    detector, model = exported(family)
    found = compare(detector, model, noise(SIZE, 2))
    assert found.scores < 1e-5 and found.boxes < 1e-3

    graph = onnx.load_from_string(model)
    (image,) = graph.graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [64, 96, 3]
    assert [output.name for output in graph.graph.output] == ["boxes", "scores", "labels"]
    assert {node.domain for node in graph.graph.node} == {""}  # no operators of anybody's own
    assert json.loads(graph.metadata_props[0].value) == list(CLASSES)


@pytest.mark.parametrize("name", ["ddq", "faster_rcnn"])
def test_a_family_that_is_refused(name):
    detector = noisy({**FAMILY_CONFIGS, "faster_rcnn": two_stage_config()}[name])
    with pytest.raises(ConfigError, match="cannot be exported to ONNX: its NonMaxSuppression"):
        export_onnx(detector.eval(), SIZE, CLASSES)


def test_an_operator_that_is_not_in_onnx(capfd):
    detector = noisy(detr_config()).eval()

    def forward(features):
        return [torch.special.bessel_j0(f) for f in neck(features)]

    neck = detector.neck.forward
    with (
        swapped(detector.neck, "forward", forward),
        pytest.raises(ConfigError, match="cannot be exported.*aten::special_bessel_j0") as error,
    ):
        export_onnx(detector, SIZE, CLASSES)
    assert "\n" not in str(error.value)
    assert len(capfd.readouterr().out) < 1000  # and not the whole graph


def test_a_size_that_would_be_padded():
    detector = noisy(dino_config()).eval()
    detector.data_preprocessor.pad_size_divisor = 32
    with pytest.raises(ConfigError, match="give multiples of 32"):
        export_onnx(detector, (96, 60), CLASSES)


def test_another_models_answers_differ():
    other = noisy(FAMILY_CONFIGS["detr"], seed=2).eval()
    found = compare(other, exported("detr")[1], noise(SIZE, 1))
    assert found.boxes > BOX_TOLERANCE
    with pytest.raises(ConfigError, match="differ from PyTorch's"):
        check_equal(found)


def detections(*rows):
    """Of rows: x1, score, label."""
    boxes = [[row[0], 0, row[0] + 5, 5] for row in rows]
    scores, labels = ([row[i] for row in rows] for i in (1, 2))
    return [np.float32(boxes), np.float32(scores), np.int64(labels)]


A, B, C = (10, 0.9, 0), (30, 0.5, 1), (50, 0.2, 0)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([A, B, C], (0, 0)),
        ([A, (30.5, 0.5, 1), C], (0, 0.5)),
        ([A, (30, 0.7, 1), C], (0.2, np.inf)),
        ([A, (30, 0.5, 0), C], (0, np.inf)),  # another label
        ([A, B], (np.inf, np.inf)),
        ([A, B, (99, 0.2, 1)], (0, 0)),  # the last: any other of this score could be there
        ([(10, np.nan, 0), B, C], (np.inf, np.inf)),
        ([(np.nan, 0.9, 0), B, C], (0, np.inf)),
    ],
)
def test_difference(theirs, expected):
    assert difference(detections(A, B, C), detections(*theirs)) == pytest.approx(expected)


def test_equal_scores_have_no_order():
    twins = [(10, 0.9, 0), (30, 0.9, 0), (50, 0.1, 1)]
    swapped_twins = [twins[1], twins[0], twins[2]]
    assert difference(detections(*twins), detections(*swapped_twins)) == Difference(0, 0)


def test_tolerance():
    check_equal(Difference(SCORE_TOLERANCE, BOX_TOLERANCE))
    for found in (Difference(0.01, 0.0), Difference(0.0, 0.2), Difference(np.inf, np.inf)):
        with pytest.raises(ConfigError, match="nothing was written"):
            check_equal(found)


def test_without_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"needs onnx.*pip install -e '\.\[export\]'"):
        export_onnx(noisy(dino_config()).eval(), SIZE, CLASSES)
