"""What torch.compile, torch.export and direct callers need of the ops: shapes, gradients, autocast.

The public ops (torch.ops.cnnfast.conv2d, ...) get the formulas of autograd.py and autocast's casts; forward mode and
torch.func's transforms, of which those formulas know nothing, get torch's ops (decomposition.py). Every op gets a fake
kernel, which tells the shape and strides of its results and nothing else. Arguments are checked by the kernels alone
(csrc/checks.h).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch._prims_common import suggest_memory_format

from . import decomposition, flops, library, routing
from .autocast import lower_precision
from .autograd import OPS, PUBLIC, Op, conv_output_size, flat_options, public_options

Ints = Sequence[int]

# Kept alive: registrations end with the Library object.
_lib = torch.library.Library("cnnfast", "FRAGMENT")


def _channels_last(tensor: Tensor) -> bool:
    return suggest_memory_format(tensor) == torch.channels_last


def _image(like: Tensor, channels: int, size: Sequence[int], channels_last: bool) -> Tensor:
    """[N, channels, *size], or without N, with the batch, device and dtype of ``like``.

    One image in channels_last is [1, channels, *size] in that format without its first dimension.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    batch = like.shape[:-3] or (1,)
    image = torch.empty((*batch, channels, *size), dtype=like.dtype, device=like.device, memory_format=memory_format)
    return image if like.dim() == 4 else image[0]


def _pooled_size(size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool) -> list[int]:
    result = []
    for d in (0, 1):
        room = size[d] + 2 * padding[d] - dilation[d] * (kernel_size[d] - 1) - 1
        pooled = (room + (stride[d] - 1 if ceil else 0)) // stride[d] + 1
        # The last window must start inside the input or its top or left padding.
        result.append(pooled - 1 if ceil and (pooled - 1) * stride[d] >= size[d] + padding[d] else pooled)
    return result


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    size = conv_output_size(input, weight, stride, padding, dilation)
    return _image(input, weight.shape[0], size, _channels_last(input) or _channels_last(weight))


def _conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Any,
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
    return_code: bool = True,
) -> tuple[Tensor, Tensor]:
    size = conv_output_size(input, weight, stride, padding, dilation)
    pooled = _pooled_size(size, kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    # Pooling one image without batch gives a contiguous result, whatever the weight's format.
    channels_last = input.dim() == 4 and (_channels_last(input) or _channels_last(weight))
    output = _image(input, weight.shape[0], pooled, channels_last)
    code = torch.empty_like(output, dtype=torch.uint8) if return_code else input.new_empty(0, dtype=torch.uint8)
    return output, code


def _conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
    allow_tf32: bool = False,
) -> Tensor:
    size = [
        (input.shape[d - 2] - 1) * stride[d]
        - 2 * padding[d]
        + dilation[d] * (weight.shape[d + 2] - 1)
        + output_padding[d]
        + 1
        for d in (0, 1)
    ]
    return _image(input, weight.shape[1] * groups, size, _channels_last(input) or _channels_last(weight))


def _conv_backward(grad_output: Tensor, input: Tensor, weight: Tensor, options: Ints, output_mask: Any) -> Any:
    channels_last = _channels_last(input) or _channels_last(weight)
    grad_input = _image(input, input.shape[-3], input.shape[-2:], channels_last) if output_mask[0] else None
    grad_weight = _image(weight, weight.shape[1], weight.shape[2:], channels_last) if output_mask[1] else None
    grad_bias = grad_output.new_empty(grad_output.shape[-3]) if output_mask[2] else None
    return grad_input, grad_weight, grad_bias


def _relu(input: Tensor) -> Tensor:
    return torch.empty_like(input)


def _max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    winner_bytes: int = 8,
) -> tuple[Tensor, Tensor]:
    size = _pooled_size(input.shape[-2:], kernel_size, stride, padding, dilation, ceil_mode)
    output = _image(input, input.shape[-3], size, _channels_last(input))
    dtype = torch.uint8 if winner_bytes == 1 else torch.int64
    winner = torch.empty_like(output, dtype=dtype) if winner_bytes else input.new_empty(0, dtype=dtype)
    return output, winner


def _avg_pool2d(
    input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, ceil_mode: bool, *divisor: Any
) -> Tensor:
    size = _pooled_size(input.shape[-2:], kernel_size, stride, padding, (1, 1), ceil_mode)
    return _image(input, input.shape[-3], size, _channels_last(input))


def _batch_norm(input: Tensor, *others: Any) -> tuple[Tensor, ...]:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    output = _image(input, input.shape[1], input.shape[2:], _channels_last(input))
    return output, *(input.new_empty(input.shape[1], dtype=dtype) for _ in range(3))


def _batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    output: Any,
    weight: Any,
    mean: Tensor,
    invstd: Tensor,
    shift: Tensor,
    activation: int,
    output_mask: Sequence[bool],
) -> Any:
    image = _image(input, input.shape[1], input.shape[2:], _channels_last(input))
    residual = None if output is None or activation == 0 else torch.empty_like(image)
    results = (image, residual, torch.empty_like(mean), torch.empty_like(mean))
    return tuple(result if wanted else None for result, wanted in zip(results, output_mask, strict=True))


def _augment(
    images: Tensor,
    parameters: Tensor,
    constants: Tensor,
    means: Any,
    key: Any,
    options: Ints,
    geometry: Ints,
    points: Ints,
    dtype: torch.dtype,
) -> Tensor:
    return _image(images, options[2], options[:2], _channels_last(images)).to(dtype)


_FAKE: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "conv2d_forward": lambda input, weight, bias, options, activation, residual=None: _conv2d(
        input, weight, bias, *public_options("conv2d", options)
    ),
    "conv2d_chosen_forward": lambda input, weight, bias, options, activation, residual, algorithm: _conv2d(
        input, weight, bias, *public_options("conv2d", options)
    ),
    "conv2d_packed_forward": lambda input, weight, bias, packed, options, activation, residual=None: _conv2d(
        input, weight, bias, *public_options("conv2d", options)
    ),
    "conv2d_relu": _conv2d,
    "conv2d_backward": _conv_backward,
    "conv2d_relu_backward": lambda grad_output, output, *args: _conv_backward(grad_output, *args),
    "conv_transpose2d": _conv_transpose2d,
    "conv_transpose2d_forward": lambda input, weight, bias, options: _conv_transpose2d(
        input, weight, bias, *public_options("conv_transpose2d", options)
    ),
    "conv_transpose2d_backward": _conv_backward,
    "conv2d_relu_max_pool2d": _conv2d_relu_max_pool2d,
    "conv2d_relu_max_pool2d_forward": lambda input, weight, bias, options, return_code: _conv2d_relu_max_pool2d(
        input, weight, bias, *[*public_options("conv2d_relu_max_pool2d", options), return_code]
    ),
    "conv2d_relu_max_pool2d_backward": lambda grad_output, code, *args: _conv_backward(grad_output, *args),
    "relu": _relu,
    "relu_forward": _relu,
    "relu_backward": lambda grad_output, output: torch.empty_like(output),
    "max_pool2d": _max_pool2d,
    "max_pool2d_with_code": lambda *args: _max_pool2d(*[*args, 1]),
    "max_pool2d_forward": lambda input, options, winner_bytes: _max_pool2d(
        *[input, *public_options("max_pool2d", options), winner_bytes]
    ),
    "max_pool2d_backward": lambda grad_output, winner, input_size, options: _image(
        grad_output, grad_output.shape[-3], input_size, _channels_last(winner)
    ),
    "avg_pool2d": _avg_pool2d,
    "avg_pool2d_forward": _avg_pool2d,
    "avg_pool2d_backward": lambda grad_output, input_size, channels_last, *args: _image(
        grad_output, grad_output.shape[-3], input_size, channels_last
    ),
    "batch_norm_forward": _batch_norm,
    "batch_norm_backward": _batch_norm_backward,
    "augment": _augment,
    "augment_gray_mean": lambda images: images.new_empty(images.shape[0], dtype=torch.float32),
    "augment_maps": lambda parameters, constants, size, geometry: parameters.new_empty(
        (parameters.shape[0], 6), dtype=torch.float64
    ),
}


def _register_autocast(op: type[Op], device: str, key: Any) -> None:
    keys = torch._C.DispatchKeySet(key)

    def cast_and_call(keyset: Any, *args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return PUBLIC[op.name](*lower_precision(device, *args[:3]), *args[3:])

    _lib.impl(op.name, cast_and_call, key.name, with_keyset=True)


def _register_autograd(op: type[Op]) -> None:
    tensors = op.tensors

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # a second result has no gradient, not even one of zeros
        op.save(ctx, inputs[:tensors], flat_options(op.name, inputs[tensors:]), output)

    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        nones = (None,) * len(ctx.needs_input_grad)
        if grad_output is None:
            return nones
        return *op.backward(ctx, grad_output)[:tensors], *nones[tensors:]

    # What torch.library.register_autograd registers; it would drop tangents without a word.
    derive = make_autograd_impl(PUBLIC[op.name], Info(backward, setup_context))

    def autograd(keyset: Any, *args: Any) -> Any:
        if routing.has_tangent(*args[:tensors]):
            routing.to_torch(op.functional, routing.FORWARD_AD)
            return decomposition.DECOMPOSITIONS[op.name](*args)
        return derive(keyset, *args)

    _lib.impl(op.name, autograd, "Autograd", with_keyset=True)


def _register_functorch(op: type[Op]) -> None:
    def transformed(*args: Any) -> Any:
        routing.to_torch(op.functional, routing.FUNCTORCH)
        return decomposition.DECOMPOSITIONS[op.name](*args)

    # The key under which torch.func's transforms, while any is active, meet every op first.
    _lib.impl(op.name, transformed, "FuncTorchDynamicLayerFrontMode")


def register() -> None:
    """Once, after the library has loaded."""
    for name, fake in _FAKE.items():
        torch.library.register_fake(f"cnnfast::{name}", fake, lib=_lib)
        if name.endswith(("_forward", "_backward")) or name.startswith("augment"):
            # Autograd has nothing to do with a raw op; without this its fallback would box and unbox every call.
            _lib.impl(name, torch.library.fallthrough_kernel, "Autograd")
    for op in OPS.values():
        _register_autograd(op)
        _register_functorch(op)
        if op.lower_precision:
            _register_autocast(op, "cpu", torch._C.DispatchKey.AutocastCPU)
            _register_autocast(op, "cuda", torch._C.DispatchKey.AutocastCUDA)


if library.load_error is None:
    register()
    flops.register()
