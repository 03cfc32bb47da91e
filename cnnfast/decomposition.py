"""The public ops in torch's differentiable ones, for whoever cannot take them whole.

:func:`decompositions` gives them to whoever has an exported program; registration.py calls them where a derivative is
wanted that our formulas do not give (torch.func's transforms, forward mode). They are not in torch's own table: where
the environment says CI, inductor refuses to call an op as it is that this table knows how to take apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import aten
from .autograd import CLIPPED, PUBLIC

Ints = Sequence[int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    allow_tf32: bool = False,  # torch reads its own switch
) -> Tensor:
    return aten.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv2d_relu(*args: Any) -> Tensor:
    return F.relu(conv2d(*args))


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    kernel_size: Ints,
    pool_stride: Ints,
    pool_padding: Ints,
    pool_dilation: Ints,
    ceil_mode: bool,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    dense = conv2d_relu(input, weight, bias, stride, padding, dilation, groups)
    output, code = max_pool2d_with_code(dense, kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    return output, torch.where(output <= 0, CLIPPED, code)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
    allow_tf32: bool = False,
) -> Tensor:
    return F.conv_transpose2d(
        input, weight, bias, list(stride), list(padding), list(output_padding), groups, list(dilation)
    )


def relu(input: Tensor) -> Tensor:
    return F.relu(input)


def max_pool2d(
    input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    options = (list(kernel_size), list(stride), list(padding), list(dilation), ceil_mode)
    return torch.ops.aten.max_pool2d_with_indices(input, *options)


def max_pool2d_with_code(
    input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    output, indices = max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
    # The place of the winner in its window, row by row; none of a window all of whose elements dilation steps over.
    tap, met = torch.zeros_like(indices), torch.ones_like(indices, dtype=torch.bool)
    for d, index in enumerate((indices // input.shape[-1], indices % input.shape[-1])):
        first = torch.arange(output.shape[d - 2], device=output.device) * stride[d] - padding[d]
        places = first.view(-1, 1) + torch.arange(kernel_size[d], device=output.device) * dilation[d]
        met_here = ((places >= 0) & (places < input.shape[d - 2])).any(1)
        if d == 0:
            first, met_here = first.view(-1, 1), met_here.view(-1, 1)
        tap, met = tap * kernel_size[d] + (index - first) // dilation[d], met & met_here
    return output, torch.where(met, tap, CLIPPED).to(torch.uint8)


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    return F.avg_pool2d(
        input, list(kernel_size), list(stride), list(padding), ceil_mode, count_include_pad, divisor_override
    )


DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        conv2d,
        conv2d_relu,
        conv2d_relu_max_pool2d,
        conv_transpose2d,
        relu,
        max_pool2d,
        max_pool2d_with_code,
        avg_pool2d,
    )
}


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """What ``run_decompositions`` needs to replace our ops in an exported program by torch's.

    ONNX, or a runtime that knows none of our ops, then takes the program.

    Returns:
        from each public op to a function of torch's ops with the same arguments and results. Like
        `torch.export.default_decompositions`, a new dict at each call, to be changed or joined with others at will.

    Example:
        >>> model, images = cnnfast.models.LectureCNN().eval(), torch.zeros(1, 1, 28, 28)
        >>> program = torch.export.export(model, (images,)).run_decompositions(cnnfast.decompositions())
        >>> any("cnnfast" in str(node.target) for node in program.graph.nodes)
        False
    """
    return {PUBLIC[name]: function for name, function in DECOMPOSITIONS.items()}
