"""What a detector costs where it is deployed."""

import sys

import pytest
import torch
from torch import nn

from kd_detr_mmdet.utils import peak_memory
from kd_detr_mmdet.utils.inference_cost import (
    WARM_UP,
    cpu_memory,
    file_megabytes,
    milliseconds,
)


def test_the_file_holds_the_weights():
    layer = nn.Linear(1000, 500)
    assert file_megabytes(layer) == pytest.approx(4 * 500 * 1001 / 1e6, rel=0.01)


def test_the_models_take_turns():
    class Model(nn.Linear):
        def __init__(self, name):
            super().__init__(1, 1)
            self.name = name

        def test_step(self, image):
            calls.append((self.name, image, torch.is_grad_enabled()))

    calls = []
    times = milliseconds(dict(a=Model("a"), b=Model("b")), dict(a="A", b="B"), 2)
    assert calls == [("a", "A", False), ("b", "B", False)] * (WARM_UP + 2)
    assert [len(values) for values in times.values()] == [2, 2]


HEAVY = """
import torch
from mmdet.registry import MODELS

@MODELS.register_module()
class Heavy(torch.nn.Linear):
    def __init__(self):
        super().__init__(4096, 4096, bias=False)

    def init_weights(self):
        torch.nn.init.ones_(self.weight)

    def test_step(self, image):
        torch.ones(2 ** 23).sum()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the memory")
def test_memory_is_that_of_weights_and_image(tmp_path, monkeypatch):
    """A model of 64 MiB, of which an image needs 32 MiB more; what is freed again counts too."""
    (tmp_path / "heavy_detector.py").write_text(HEAVY)
    monkeypatch.syspath_prepend(tmp_path)
    measured = cpu_memory(dict(type="Heavy"), (64, 32), dict(imports=["heavy_detector"]))
    assert 96 * 2**20 <= measured < 112 * 2**20


def test_other_systems_tell_no_memory(monkeypatch):
    monkeypatch.setattr(peak_memory.sys, "platform", "darwin")
    assert cpu_memory({}, (64, 32)) is None
