"""The ops, with the signatures, results and errors of torch.nn.functional.

All take [N, C, H, W] or, for one image, [C, H, W] tensors in NCHW or channels_last layout, float32, float64, bfloat16
or float16 (16-bit types are summed in float32), and return torch's memory format. ``int or pair`` is one int for
height and width, or (height, width). What no own kernel covers runs on torch's own op: see
:func:`cnnfast.fallbacks`.

Errors, for every op: TypeError for arguments of the wrong type; RuntimeError for wrong ranks, channel counts, sizes
or dtypes, with a message ``op: rule, but got name=value``.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from . import autograd, routing
from .arguments import (
    IntOrPair,
    check_bool,
    check_int,
    conv2d_options,
    fused_options,
    kernel_of,
    max_pool2d_options,
    pair,
    pool_stride_of,
)
from .autocast import lower_precision
from .precision import allow_tf32
from .routing import to_torch, why_not

__all__ = list(routing.OPS)

ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "silu": 3, "hardswish": 4}  # csrc/common/activation.h
_MAX_CODED_WINDOW = 254  # csrc/common/shape.h, kMaxCodedWindow


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """2D convolution (cross-correlation), as :func:`torch.nn.functional.conv2d`.

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [K, C / groups, R, S].
        bias: [K].
        stride: step of the window in pixels, int or pair.
        padding: zeros around the input, int or pair; 'valid' for none; 'same' for output as large as input (stride 1
            only), where an even kernel's extra row and column are at the bottom and right.
        dilation: distance of kernel elements in pixels, int or pair.
        groups: number of blocks into which C and K are divided.

    Returns:
        [N, K, P, Q] or [K, P, Q], P = (H + padding - dilation * (R - 1) - 1) // stride + 1 with padding that of both
        sides, Q likewise.

    Example::

        >>> conv2d(torch.randn(8, 3, 28, 28), torch.randn(16, 3, 3, 3), padding=1).shape
        torch.Size([8, 16, 28, 28])
    """
    name = "conv2d"
    compiling = torch.compiler.is_compiling()
    if (reason := why_not(name, compiling, input, weight, bias)) is not None:
        to_torch(name, reason)
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    R, S = kernel_of(weight) if isinstance(padding, str) else (1, 1)
    options = conv2d_options(compiling, name, R, S, stride, padding, dilation, groups)
    return _run(name, compiling, (input, weight, bias), options)


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """``relu(conv2d(...))`` in one pass: the values before ReLU are never stored. Arguments as :func:`conv2d`.

    Example::

        >>> conv2d_relu(torch.randn(8, 3, 28, 28), torch.randn(16, 3, 3, 3), padding=1).min() >= 0
        tensor(True)
    """
    name = "conv2d_relu"
    compiling = torch.compiler.is_compiling()
    if (reason := why_not(name, compiling, input, weight, bias)) is not None:
        to_torch(name, reason)
        return F.relu(F.conv2d(input, weight, bias, stride, padding, dilation, groups))
    R, S = kernel_of(weight) if isinstance(padding, str) else (1, 1)
    options = conv2d_options(compiling, name, R, S, stride, padding, dilation, groups)
    return _run(name, compiling, (input, weight, bias), options)


def conv2d_constant(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: str | IntOrPair,
    dilation: IntOrPair,
    groups: int,
    activation: Literal["none", "relu", "relu6", "silu", "hardswish"],
    packed: dict[Any, Tensor] | None,
    residual: Tensor | None = None,
) -> Tensor | None:
    """``activation(conv2d(...) + residual)`` in one pass, of weights that do not change while ``packed`` is the same
    dictionary, where they are kept packed; None where there is no such pass: not on the CPU, not on own kernels, nor of
    a residual of another shape or dtype than the output's.

    For what convert has fused: nobody asks for a gradient, autocasts or compiles.
    """
    name = "conv2d"
    others: tuple[Tensor | None, ...] = (weight, bias) if packed is None else ()  # what is kept has been looked at
    if residual is not None:
        if type(residual) is not Tensor or residual.dtype is not input.dtype or not residual.is_cpu:
            return None
        others = (*others, residual)
    if not input.is_cpu or why_not(name, False, input, *others) is not None:
        return None
    R, S = kernel_of(weight) if isinstance(padding, str) else (1, 1)
    options = conv2d_options(False, name, R, S, stride, padding, dilation, groups)
    if residual is not None:
        size = autograd.conv_output_size(input, weight, options[:2], options[2:6], options[6:8])
        if residual.shape != (input.shape[0], weight.shape[0], *size):
            return None
    return autograd.conv2d_constant(input, weight, bias, options, ACTIVATIONS[activation], packed, residual)


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    pool_kernel_size: IntOrPair = 2,
    pool_stride: IntOrPair | None = None,
    pool_padding: IntOrPair = 0,
    pool_dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """``max_pool2d(relu(conv2d(...)), ...)`` in one pass: the un-pooled map is never stored, forward or backward.

    Without a gradient wanted, 3x3 kernels of stride 1 on 8 or more channels run as Winograd F(2x2, 3x3) (Lavin and
    Gray, 2016, arXiv 1509.09308): rounding errors are then bounded by the largest values of the 4x4 input tile and the
    kernel, not by each element's own sum.

    Backward keeps input, weight and one byte per pooled element (which element of its window won, or that ReLU
    clipped it) and works from those; windows of more than 254 elements are pooled unfused.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as :func:`conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode: as :func:`max_pool2d`.

    Returns:
        The pooled output alone, [N, K, P', Q'] or [K, P', Q'].

    Example::

        >>> conv2d_relu_max_pool2d(torch.randn(8, 1, 28, 28), torch.randn(12, 1, 3, 3), padding=1).shape
        torch.Size([8, 12, 14, 14])
    """
    name = "conv2d_relu_max_pool2d"
    compiling = torch.compiler.is_compiling()
    if (reason := why_not(name, compiling, input, weight, bias)) is not None:
        to_torch(name, reason)
        output = F.relu(F.conv2d(input, weight, bias, stride, padding, dilation, groups))
        return F.max_pool2d(output, pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    R, S = kernel_of(weight) if isinstance(padding, str) else (1, 1)
    conv = (stride, padding, dilation, groups)
    pool = (pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    options = fused_options(compiling, name, R, S, *conv, *pool)
    if options[9] * options[10] > _MAX_CODED_WINDOW:
        routing.record(name, routing.LARGE_WINDOW, "runs as conv2d_relu and max_pool2d")
        output = conv2d_relu(input, weight, bias, *conv)
        return max_pool2d(output, *pool)
    return _run(name, compiling, (input, weight, bias), options)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Tensor:
    """Transposed 2D convolution, as :func:`torch.nn.functional.conv_transpose2d`: the gradient of a convolution.

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [C, K / groups, R, S].
        bias: [K].
        stride: step of the window in the output, int or pair.
        padding: rows and columns cut from each side of the output, int or pair.
        output_padding: rows and columns added at the bottom and right of the output, int or pair; smaller than either
            stride or dilation.
        groups: number of blocks into which C and K are divided.
        dilation: distance of kernel elements in pixels, int or pair.

    Returns:
        [N, K, P, Q] or [K, P, Q], P = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1, Q
        likewise.

    Example::

        >>> conv_transpose2d(torch.randn(8, 16, 7, 7), torch.randn(16, 3, 2, 2), stride=2).shape
        torch.Size([8, 3, 14, 14])
    """
    name = "conv_transpose2d"
    compiling = torch.compiler.is_compiling()
    if (reason := why_not(name, compiling, input, weight, bias)) is not None:
        to_torch(name, reason)
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    options = (
        *pair(name, "stride", stride),
        *pair(name, "padding", padding),
        *pair(name, "output_padding", output_padding),
        check_int(name, "groups", groups),
        *pair(name, "dilation", dilation),
        False,
    )
    return _run(name, compiling, (input, weight, bias), options)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0) for each element, NaN kept, as :func:`torch.nn.functional.relu`; any shape.

    Args:
        input: any shape.
        inplace: write into ``input`` and return it. That is torch's own ``relu_``.

    Example::

        >>> relu(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if inplace:
        to_torch("relu", routing.INPLACE)
        return F.relu(input, inplace=True)
    compiling = torch.compiler.is_compiling()
    if (reason := why_not("relu", compiling, input)) is not None:
        to_torch("relu", reason)
        return F.relu(input)
    return _run("relu", compiling, (input,), ())


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
) -> Tensor: ...


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any: ...


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of each window, as :func:`torch.nn.functional.max_pool2d`. NaN wins its window.

    Args:
        input: [N, C, H, W] or [C, H, W].
        kernel_size: size of the window, int or pair.
        stride: step of the window, int or pair; None for ``kernel_size``.
        padding: rows and columns around the input that never win, int or pair; at most half of the window.
        dilation: distance of window elements in pixels, int or pair.
        ceil_mode: round output sizes up, with windows that reach over the edge, instead of down.
        return_indices: return (output, indices), indices being h * W + w of each winner as int64.

    Returns:
        [N, C, P, Q] or [C, P, Q], P = (H + 2 * padding - dilation * (R - 1) - 1) // stride + 1, Q likewise.

    Example::

        >>> max_pool2d(torch.randn(8, 12, 28, 28), 2).shape
        torch.Size([8, 12, 14, 14])
    """
    name = "max_pool2d"
    compiling = torch.compiler.is_compiling()
    if (reason := why_not(name, compiling, input)) is not None:
        to_torch(name, reason)
        options: Any = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return F.max_pool2d(input, *options)
    options = max_pool2d_options(name, "", kernel_size, stride, padding, dilation, ceil_mode)
    if not return_indices and options[0] * options[1] <= _MAX_CODED_WINDOW:
        name = "max_pool2d_with_code"
    return _run(name, compiling, (input,), options, all_results=return_indices)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window, as :func:`torch.nn.functional.avg_pool2d`.

    Args:
        input: [N, C, H, W] or [C, H, W].
        kernel_size: size of the window, int or pair.
        stride: step of the window, int or pair; None for ``kernel_size``.
        padding: zeros around the input, int or pair; at most half of the window.
        ceil_mode: round output sizes up, with windows that reach over the edge, instead of down.
        count_include_pad: count the padding in the divisor.
        divisor_override: divide by this instead of by the number of elements.

    Returns:
        [N, C, P, Q] or [C, P, Q], P = (H + 2 * padding - R) // stride + 1, Q likewise.

    Example::

        >>> avg_pool2d(torch.randn(8, 12, 28, 28), 2).shape
        torch.Size([8, 12, 14, 14])
    """
    name = "avg_pool2d"
    compiling = torch.compiler.is_compiling()
    if (reason := why_not(name, compiling, input)) is not None:
        to_torch(name, reason)
        return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if input.dim() < 3:  # torch's type of error here, which the kernel's own check cannot raise
        raise IndexError(
            f"{name}: input must be 3D (unbatched) or 4D (batched): [C, H, W] or [N, C, H, W], but got "
            f"input.shape={list(input.shape)}"
        )
    kernel_size = pair(name, "kernel_size", kernel_size)
    options = (
        *kernel_size,
        *pool_stride_of(name, stride, kernel_size),
        *pair(name, "padding", padding),
        check_bool(name, "ceil_mode", ceil_mode),
        check_bool(name, "count_include_pad", count_include_pad),
        None if divisor_override is None else check_int(name, "divisor_override", divisor_override),
    )
    return _run(name, compiling, (input,), options)


# torch.compile cannot ask an autograd Function.
_CONVOLUTIONS = frozenset(name for name, op in autograd.OPS.items() if op.lower_precision)


def _run(
    name: str,
    compiling: bool,
    tensors: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    all_results: bool = False,
) -> Any:
    """Runs an own kernel the way this caller needs it: traced, with gradient, or without. The first result, or all."""
    convolution = name in _CONVOLUTIONS
    # is_cpu first: making a device object costs as much as the question.
    device = "cpu" if tensors[0].is_cpu else tensors[0].device.type  # type: ignore[union-attr]
    if convolution:
        options = _with_precision(device, options)
    if compiling:
        results = autograd.PUBLIC[name](*tensors, *autograd.public_options(name, options))
        return results[0] if isinstance(results, tuple) and not all_results else results
    op = autograd.OPS[name]
    if convolution and torch.is_autocast_enabled(device):
        tensors = lower_precision(device, *tensors)
    run = op.compute if all_results else op.infer
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                run = op.apply
                break
    results = run(*tensors, options)
    return results[0] if type(results) is tuple and not all_results else results


def _with_precision(device: str, options: tuple[Any, ...]) -> tuple[Any, ...]:
    """A convolution's options with torch's switch as it is now."""
    return options if device == "cpu" else (*options[:-1], allow_tf32())
