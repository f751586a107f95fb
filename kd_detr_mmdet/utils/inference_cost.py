"""What a detector costs where it is deployed: milliseconds, memory and file size."""

import io

import numpy as np
import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import DetDataSample

from .benchmark import Clock, untrained
from .peak_memory import peak_growth

WARM_UP = 3  # rounds that are not counted


def random_image(size: tuple[int, int], seed: int = 0) -> dict:
    """One random image of (width, height) pixels as a test loader gives it."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    shape = (height, width)
    sample = DetDataSample(
        metainfo=dict(img_id=0, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    )
    return dict(inputs=[torch.from_numpy(pixels)], data_samples=[sample])


def file_megabytes(model: BaseDetector) -> float:
    """Size of a file with the weights alone, in 10^6 bytes."""
    file = io.BytesIO()
    torch.save(dict(state_dict=model.state_dict()), file)
    return file.tell() / 1e6


@torch.no_grad()
def milliseconds(
    models: dict[str, BaseDetector], images: dict[str, dict], rounds: int
) -> dict[str, list[float]]:
    """Time of one image through each model, from pixels in memory to detections.

    The models take turns, so that whatever else the machine does meets all of them.

    Args:
        models: By name, in eval mode, all on one device.
        images: By the same names, of :func:`random_image`.
        rounds: How many to count, after ``WARM_UP``.
    """
    clock = Clock(next(next(iter(models.values())).parameters()).device)
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(WARM_UP + rounds):
        for name, model in models.items():
            clock.settle()
            start = clock.mark()
            model.test_step(images[name])
            end = clock.mark()
            clock.settle()
            spent[name].append(1000 * clock.between(start, end))
    return {name: times[WARM_UP:] for name, times in spent.items()}


@torch.no_grad()
def gpu_memory(model: BaseDetector, image: dict, device: torch.device) -> int:
    """Peak bytes of a model's weights and one image's pass on a GPU, to which it is moved."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model.to(device).test_step(image)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_memory(
    model_cfg: dict, size: tuple[int, int], custom_imports: dict | None = None
) -> int | None:
    """Peak bytes that a model adds to a process of its own: it is built there, and sees one image.

    Its weights and what one image needs are in it; Python and its packages, which every detector
    needs, are not.

    Args:
        model_cfg: The detector's config; a checkpoint makes no difference.
        size: Of a random image, (width, height).
        custom_imports: As in a config.

    Returns:
        int | None: None where the system does not tell: it has to be Linux.
    """
    return peak_growth(_one_image, model_cfg, size, custom_imports=custom_imports)


@torch.no_grad()
def _one_image(model_cfg: dict, size: tuple[int, int]) -> None:
    untrained(model_cfg).test_step(random_image(size))
