"""RoIAlign (He et al., Mask R-CNN, 2017) with the signatures of mmcv's compiled operator.

Each RoI is cut into ``aligned_height * aligned_width`` bins, each bin is sampled bilinearly on a
regular grid, and the samples are averaged (``pool_mode=1``) or their maximum is taken (0). With
``sampling_ratio=0`` the grid has about one sample per pixel, so RoIs differ in their number of
samples. The samples of many RoIs are therefore kept in one flat list, chunk by chunk.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .torchvision_ops import torchvision_ops, working_dtype

MAX_POOL, AVG_POOL = 0, 1
# Samples times channels in one chunk, some 200 MB (more only for a single RoI that is larger).
CHUNK_SIZE = 2**23
# The compiled operator starts its maximum here; bins without a sample return it.
LOWEST = -10000.0


class Samples(NamedTuple):
    """The T sampling positions of one chunk of RoIs."""

    rois: slice  # which RoIs
    bins: Tensor  # (T,) flat bin of each sample: (roi * height + row) * width + column
    image: Tensor  # (T,) index into the batch
    y: Tensor  # (T,) in pixels of the feature map
    x: Tensor  # (T,)
    count: Tensor  # (number of bins,) samples in each bin


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool features inside RoIs, into ``output`` (and ``argmax_y``, ``argmax_x``).

    torchvision computes the average, where it is at hand; it has no maximum. Half precision is
    computed in float32. A RoI of negative size has no samples when ``sampling_ratio`` is 0.

    Args:
        input: (B, C, H, W) features.
        rois: (R, 5) image index, x1, y1, x2, y2 in pixels of the image.
        output: (R, C, aligned_height, aligned_width), written in place.
        argmax_y: Like ``output`` for the maximum, written in place: where it was found, in pixels
            of the feature map, -1 for nowhere. Empty and unused for the average.
        argmax_x: As ``argmax_y``.
        aligned_height: Rows of bins.
        aligned_width: Columns of bins.
        spatial_scale: Feature pixels per image pixel, for example 1/16.
        sampling_ratio: Samples along each side of a bin; 0 takes about one a pixel.
        pool_mode: 0 for the maximum, 1 for the average.
        aligned: Shift by half a pixel, so that pixel centres are where they belong; if False, RoIs
            are at least one pixel large instead.
    """
    dtype = working_dtype(input)
    input, rois = input.to(dtype), rois.to(dtype)
    size = (aligned_height, aligned_width)
    vision = torchvision_ops()
    if pool_mode == AVG_POOL and vision is not None:
        pooled = vision.roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned)
        output.copy_(pooled)
        return

    channels, height, width = input.shape[1:]
    pixels = input.permute(0, 2, 3, 1).reshape(-1, channels)  # (B*H*W, C)
    for part in _samples(rois, size, spatial_scale, sampling_ratio, aligned, channels):
        pixel, weight = _pixels(part, height, width)

        def to_output(bins: Tensor) -> Tensor:  # (bins, C) to (r, C, height, width)
            return bins.view(-1, *size, channels).permute(0, 3, 1, 2)

        if pool_mode == AVG_POOL:
            weight = weight / part.count[part.bins, None]
            output[part.rois] = to_output(_gather(pixels, pixel, weight, 4 * part.count)).to(output)
        else:
            values = sum(pixels[i] * w[:, None] for i, w in zip(pixel.T, weight.T))  # (T, C)
            best, y, x = _maximum(values, part)
            output[part.rois] = to_output(best).to(output)
            argmax_y[part.rois] = to_output(y).to(output)
            argmax_x[part.rois] = to_output(x).to(output)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input``, in place.

    Args:
        grad_output: (R, C, aligned_height, aligned_width).
        rois: (R, 5) as in the forward pass; they get no gradient.
        argmax_y: As the forward pass wrote it.
        argmax_x: As the forward pass wrote it.
        grad_input: (B, C, H, W).
        aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned: As in the
            forward pass.
    """
    dtype = working_dtype(grad_output)
    grad_output, rois = grad_output.to(dtype), rois.to(dtype)
    size = (aligned_height, aligned_width)
    batch, channels, height, width = grad_input.shape
    vision = torchvision_ops()
    if pool_mode == MAX_POOL:
        index, weight = _corners(argmax_y.to(dtype), argmax_x.to(dtype), height, width)
        plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)  # (R, C)
        index = index + (plane * (height * width))[:, :, None, None]
        values = grad_output * weight * (argmax_y != -1)
        grad = grad_output.new_zeros(grad_input.numel())
        grad = grad.index_add_(0, index.flatten(), values.flatten()).view(grad_input.shape)
    elif vision is not None:
        # The average is linear: its gradient is the same at every input.
        with torch.enable_grad():
            zeros = grad_output.new_zeros(grad_input.shape, requires_grad=True)
            pooled = vision.roi_align(zeros, rois, size, spatial_scale, sampling_ratio, aligned)
            (grad,) = torch.autograd.grad(pooled, zeros, grad_output)
    else:
        bins = grad_output.permute(0, 2, 3, 1).flatten(1, 2)  # (R, bins of a RoI, C)
        pixels = grad_output.new_zeros(batch * height * width, channels)
        for part in _samples(rois, size, spatial_scale, sampling_ratio, aligned, channels):
            pixel, weight = _pixels(part, height, width)
            weight = weight / part.count[part.bins, None]
            # The other way round: each pixel gathers from the bins that it has gone into.
            pixel, order = pixel.flatten().sort(stable=True)
            bin_ = part.bins.repeat_interleave(4)[order]
            count = pixel.bincount(minlength=len(pixels))
            share = bins[part.rois].flatten(0, 1)
            pixels += _gather(share, bin_, weight.flatten()[order], count)
        grad = pixels.view(batch, height, width, channels).permute(0, 3, 1, 2)
    grad_input.add_(grad.to(grad_input))


def _samples(
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    channels: int,
) -> Iterator[Samples]:
    """The sampling positions of all RoIs, in chunks of about ``CHUNK_SIZE / channels`` samples."""
    device = rois.device
    offset = 0.5 if aligned else 0.0
    start = rois[:, [2, 1]] * spatial_scale - offset  # (R, 2) as y, x; so are all pairs below
    extent = rois[:, [4, 3]] * spatial_scale - offset - start
    if not aligned:
        extent = extent.clamp(min=1)
    bin_size = extent / extent.new_tensor(size)
    if sampling_ratio > 0:
        grid = torch.full_like(bin_size, sampling_ratio, dtype=torch.long)
    else:
        grid = bin_size.float().ceil().clamp(min=0).long()  # ceilf: float32 also for float64

    bins_per_roi = size[0] * size[1]
    per_bin = grid.prod(1)
    ends = (per_bin * bins_per_roi).cumsum(0)
    chunk = ends // max(CHUNK_SIZE // channels, 1)
    first = 0
    for number in torch.unique_consecutive(chunk, return_counts=True)[1].tolist():
        part = slice(first, first + number)
        first += number
        count = per_bin[part].repeat_interleave(bins_per_roi)
        bins = torch.arange(len(count), device=device).repeat_interleave(count)
        within = torch.arange(len(bins), device=device) - (count.cumsum(0) - count)[bins]
        roi = part.start + bins // bins_per_roi
        columns = grid[roi, 1]
        cell = torch.stack((bins % bins_per_roi // size[1], bins % size[1]), dim=1)
        step = torch.stack((within // columns, within % columns), dim=1)
        size_of_bin = bin_size[roi]
        position = start[roi] + cell * size_of_bin + (step + 0.5) * size_of_bin / grid[roi]
        y, x = position.unbind(1)
        yield Samples(part, bins, rois[roi, 0].long(), y, x, count)


def _pixels(part: Samples, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each sample, (T, 4) flat indices into the batch, and their weights."""
    index, weight = _corners(part.y, part.x, height, width)
    return (index + part.image * (height * width)).T, weight.T


def _gather(values: Tensor, index: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """Weighted sums of rows, without a copy of each: a fifth of the time of adding them up.

    Args:
        values: (N, C).
        index: Of the rows that go into the first sum, the second, and so on, of any shape.
        weight: Of each.
        count: (K,) rows in each sum.

    Returns:
        (K, C).
    """
    starts = count.cumsum(0) - count
    return F.embedding_bag(
        index.flatten(), values, starts, mode="sum", per_sample_weights=weight.flatten()
    )


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each position, (4, ...) ``row * width + column``, and their weights.

    A position up to one pixel outside takes the border's value, one further out has no weight.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor().long(), x.floor().long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    low_y, low_x = y - top, x - left
    high_y, high_x = 1 - low_y, 1 - low_x
    top, bottom = top * width, bottom * width
    index = torch.stack((top + left, top + right, bottom + left, bottom + right))
    weight = torch.stack((high_y * high_x, high_y * low_x, low_y * high_x, low_y * low_x))
    return index, weight * inside


def _maximum(values: Tensor, part: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Each bin's maximum over its samples, and the first y and x it is found at: (bins, C) each."""
    shape = (len(part.count), values.shape[1])
    bins = part.bins[:, None].expand_as(values)
    best = values.new_full(shape, LOWEST).scatter_reduce_(0, bins, values, "amax")
    none = len(values)  # one past the last sample
    number = torch.arange(none, device=values.device)[:, None]
    found = (values == best[part.bins]) & (values > LOWEST)
    number = torch.where(found, number, none)
    first = number.new_full(shape, none).scatter_reduce_(0, bins, number, "amin")
    nowhere = values.new_tensor([-1.0])
    return best, torch.cat((part.y, nowhere))[first], torch.cat((part.x, nowhere))[first]
