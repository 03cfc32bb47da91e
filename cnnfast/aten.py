"""torch's own convolution, forward and backward, with the options of ours: padding is (top, bottom, left, right)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Ints = Sequence[int]
Grads = tuple[Tensor | None, ...]


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    top, bottom, left, right = padding
    if top != bottom or left != right:
        input, padding = F.pad(input, (left, right, top, bottom)), (0, 0)
    else:
        padding = (top, left)
    return F.conv2d(input, weight, bias, list(stride), list(padding), list(dilation), groups)


def conv2d_backward(grad_output: Tensor, input: Tensor, weight: Tensor, options: Any, mask: Any) -> Grads:
    """conv2d_backward in torch's differentiable ops."""
    stride, padding, dilation, groups = options[:4]
    top, bottom, left, right = padding
    common = (min(top, bottom), min(left, right))
    extra = (left - common[1], right - common[1], top - common[0], bottom - common[0])
    # aten pads both sides alike; the rest of an asymmetric padding is made of zeros, and cropped from the gradient.
    padded = F.pad(input, extra) if any(extra) else input
    grad_input, grad_weight, grad_bias = convolution_backward(
        grad_output, padded, weight, stride, common, dilation, False, (0, 0), groups, mask
    )
    if grad_input is not None and any(extra):
        grad_input = F.pad(grad_input, [-size for size in extra])
    return grad_input, grad_weight, grad_bias


def convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
    mask: Any,
) -> Grads:
    """aten::convolution_backward, for one image as well."""
    single = input.dim() == 3
    if single:
        # In channels_last, torch's gradients of groups in float64 are wrong by the stride that the new dimension gets.
        if groups > 1:
            grad_output, input = grad_output.contiguous(), input.contiguous()
        grad_output, input = grad_output.unsqueeze(0), input.unsqueeze(0)
    channels = [grad_output.shape[1]]
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_output, input, weight, channels, stride, padding, dilation, transposed, output_padding, groups, list(mask)
    )
    if single and grad_input is not None:
        grad_input = grad_input.squeeze(0)
    return grad_input, grad_weight, grad_bias
