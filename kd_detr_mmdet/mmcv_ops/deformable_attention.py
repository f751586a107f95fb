"""Multi-scale deformable attention with the signatures of mmcv's compiled operator.

mmcv has a PyTorch version of its own but takes it on the CPU only; here an accelerator gets it too.
"""

import torch
from torch import Tensor


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sum of the values sampled around each query.

    Args:
        value: (B, S, heads, channels), the S positions of all levels one after another.
        value_spatial_shapes: (levels, 2) height and width of each level.
        value_level_start_index: Not used; the shapes tell it.
        sampling_locations: (B, Q, heads, levels, points, 2) x and y relative to the level's size.
        attention_weights: (B, Q, heads, levels, points).
        im2col_step: Not used; a matter of the compiled operator's memory.

    Returns:
        (B, Q, heads * channels).
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # As a list: a tensor on an accelerator would be waited for at each of its elements.
    shapes = value_spatial_shapes.tolist()
    return multi_scale_deformable_attn_pytorch(value, shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add the gradients of :func:`ms_deform_attn_forward` in place, by computing it once more.

    Args:
        value, value_spatial_shapes, value_level_start_index, sampling_locations,
            attention_weights, im2col_step: As in the forward pass.
        grad_output: (B, Q, heads * channels).
        grad_value: Like ``value``.
        grad_sampling_loc: Like ``sampling_locations``.
        grad_attn_weight: Like ``attention_weights``.
    """
    inputs = [t.detach().requires_grad_() for t in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0],
            value_spatial_shapes,
            value_level_start_index,
            inputs[1],
            inputs[2],
            im2col_step,
        )
        grads = torch.autograd.grad(output, inputs, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        target.add_(grad)
