"""How many operations our ops are, for ``torch.utils.flop_counter.FlopCounterMode``: as many as torch's.

As there, a product and a sum count as two operations, whatever algorithm saves some of them; of what follows a
convolution none is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .autograd import conv_output_size, public_options

__all__ = ["register"]

Shape = Sequence[int]


def _per_pixel(weight: Shape) -> int:
    """Operations for each element of a convolution's output, or of a transposed one's input."""
    return 2 * math.prod(weight[1:])


def _conv2d(input: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return math.prod(out_shape) * _per_pixel(weight)


def _conv_transpose2d(input: Shape, weight: Shape, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return math.prod(input) * _per_pixel(weight)


def _pooled(input: Shape, weight: Shape, stride: Shape, padding: Shape, dilation: Shape) -> int:
    """Of a convolution whose output is pooled."""
    x, w = torch.empty(input, device="meta"), torch.empty(weight, device="meta")
    P, Q = conv_output_size(x, w, stride, padding, dilation)
    return math.prod(input[:-3]) * weight[0] * P * Q * _per_pixel(weight)


def _conv2d_relu_max_pool2d(
    input: Shape, weight: Shape, bias: Any, stride: Shape, padding: Shape, dilation: Shape, *args: Any, **kwargs: Any
) -> int:
    return _pooled(input, weight, stride, padding, dilation)


def _conv2d_relu_max_pool2d_forward(
    input: Shape, weight: Shape, bias: Any, options: Any, *args: Any, **kwargs: Any
) -> int:
    return _pooled(input, weight, *public_options("conv2d_relu_max_pool2d", options)[:3])


def _gradients(mask: Sequence[bool]) -> int:
    """How many there are that take as many operations as the forward pass: of input and weight."""
    return int(mask[0]) + int(mask[1])


def _conv2d_backward(grad: Shape, input: Shape, weight: Shape, options: Any, mask: Any, **kwargs: Any) -> int:
    return _gradients(mask) * math.prod(grad) * _per_pixel(weight)


def _conv2d_relu_backward(grad: Shape, output: Shape, *args: Any, **kwargs: Any) -> int:
    return _conv2d_backward(grad, *args, **kwargs)


def _conv2d_relu_max_pool2d_backward(
    grad: Shape, code: Shape, input: Shape, weight: Shape, options: Any, mask: Any, **kwargs: Any
) -> int:
    return _gradients(mask) * _conv2d_relu_max_pool2d_forward(input, weight, None, options)


def _conv_transpose2d_backward(grad: Shape, input: Shape, weight: Shape, options: Any, mask: Any, **kwargs: Any) -> int:
    return _gradients(mask) * math.prod(input) * _per_pixel(weight)


_FORMULAS: dict[str, Callable[..., int]] = {
    "conv2d": _conv2d,
    "conv2d_relu": _conv2d,
    "conv2d_forward": _conv2d,
    "conv2d_chosen_forward": _conv2d,
    "conv2d_packed_forward": _conv2d,
    "conv2d_backward": _conv2d_backward,
    "conv2d_relu_backward": _conv2d_relu_backward,
    "conv2d_relu_max_pool2d": _conv2d_relu_max_pool2d,
    "conv2d_relu_max_pool2d_forward": _conv2d_relu_max_pool2d_forward,
    "conv2d_relu_max_pool2d_backward": _conv2d_relu_max_pool2d_backward,
    "conv_transpose2d": _conv_transpose2d,
    "conv_transpose2d_forward": _conv_transpose2d,
    "conv_transpose2d_backward": _conv_transpose2d_backward,
}


def register() -> None:
    """Once, after the library has loaded."""
    for name, formula in _FORMULAS.items():
        register_flop_formula(getattr(torch.ops.cnnfast, name))(formula)
