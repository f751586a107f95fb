"""What a detector costs."""

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import SampleList
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def params_m(detector: BaseDetector) -> float:
    """Number of parameters in millions."""
    return sum(p.numel() for p in detector.parameters()) / 1e6


def gflops(detector: BaseDetector, batch_inputs: Tensor, batch_data_samples: SampleList) -> float:
    """Multiply-adds of one forward pass in 10^9, the unit that MMDetection's tables call GFLOPs.

    PyTorch counts those of convolutions, linear layers and attention; sampling in deformable
    attention is not among them.

    Args:
        detector: Left in the mode it was in.
        batch_inputs: Normalised images, shape (bs, 3, H, W).
        batch_data_samples: Their meta information.
    """
    training = detector.training
    learnt = [p for p in detector.parameters() if p.requires_grad]
    detector.eval()
    counter = FlopCounterMode(display=False)
    # The counter fails at views of parameters that ask for a gradient (Deformable DETR's queries).
    for parameter in learnt:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad(), counter:
            detector(batch_inputs, batch_data_samples, mode="tensor")
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)
        detector.train(training)
    return counter.get_total_flops() / 2 / 1e9
