"""The torch.autograd.Function of each op, and the backward formulas, each once.

``forward`` has ctx as its first argument: that is what eager mode calls, at about a third of what a registered
autograd formula or a setup_context Function costs per call. It is ``compute``, the raw op, followed by ``save``; both
take the tensors, then one tuple of options, as ``backward`` finds it in ``ctx.options``. ``save`` and ``backward`` are
also what registration.py gives the public op for torch.compile and direct callers.

The raw backward ops have no derivative of their own. Where backward is itself differentiated (create_graph=True,
forward mode, torch.func), the formulas run on torch's ops instead: see aten.py and ``_scatter``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd import Function, forward_ad

from . import aten, tuned, tuning
from .library import function, op

_conv2d_forward = function("conv2d_forward")
_conv2d_pack_weight = function("conv2d_pack_weight")
_conv2d_packed_forward = function("conv2d_packed_forward")
_conv2d_backward = function("conv2d_backward")
_conv2d_relu_backward = function("conv2d_relu_backward")
_conv_transpose2d_forward = function("conv_transpose2d_forward")
_conv_transpose2d_backward = function("conv_transpose2d_backward")
_conv2d_relu_max_pool2d_forward = function("conv2d_relu_max_pool2d_forward")
_conv2d_relu_max_pool2d_backward = function("conv2d_relu_max_pool2d_backward")
_relu_forward = function("relu_forward")
_relu_backward = function("relu_backward")
_max_pool2d_forward = function("max_pool2d_forward")
_max_pool2d_backward = function("max_pool2d_backward")
_avg_pool2d_forward = function("avg_pool2d_forward")
_avg_pool2d_backward = function("avg_pool2d_backward")

CLIPPED = 255  # csrc/common/shape.h, kClipped
_NO_ACTIVATION, _RELU = range(2)  # csrc/common/activation.h
# What is kept for so many sizes of input at most. Most are of one packing: it begins with so many floats that tell.
_KEPT_LAYOUTS, _PACKED_HEADER = 8, 16

Ints = Sequence[int]
Options = tuple[Any, ...]
Grads = tuple[Tensor | None, ...]


class Op(Function):
    """An op of the library: how it runs, what it keeps for backward, its backward formula."""

    #: The name in torch.ops.cnnfast.
    name: ClassVar[str]
    #: The name in cnnfast.functional, where that is another.
    functional: ClassVar[str]
    #: How many tensors it takes, an absent bias included.
    tensors: ClassVar[int] = 1
    #: Whether autocast runs it in the lower precision, as it does torch's own.
    lower_precision: ClassVar[bool] = False
    #: (tensors..., options) -> the public op's results.
    compute: ClassVar[Callable[..., Any]]
    #: (ctx, tensors, options, results): keeps what backward needs, options included.
    save: ClassVar[Callable[..., None]]
    #: As ``compute``, without the results that only backward needs.
    infer: ClassVar[Callable[..., Any]]
    #: Whether only ``backward`` wants the results past the first.
    private: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "functional" not in vars(cls):
            cls.functional = cls.name
        if "infer" not in vars(cls):
            cls.infer = cls.compute
        compute, save, private = cls.compute, cls.save, cls.private

        def forward(ctx: Any, *args: Any) -> Any:
            results = compute(*args)
            save(ctx, args[:-1], args[-1], results)
            return results[0] if private else results

        cls.forward = staticmethod(forward)  # type: ignore[method-assign]
        # Function.apply itself first asks for a setup_context and for torch.func transforms, at a fifth of the cost of
        # a small call; there is none of the former here, and routing.py has sent the latter to torch's own op.
        cls.apply = super(Function, cls).apply  # type: ignore[method-assign, misc]


# Options of the public ops by length: 0 is a single number, None a flag.
_CONV2D = (2, 4, 2, 0)  # stride, padding, dilation, groups
_CONV_TRANSPOSE2D = (2, 2, 2, 0, 2)  # stride, padding, output_padding, groups, dilation
_ALLOW_TF32 = (None,)
_MAX_POOL2D = (2, 2, 2, 2, None)  # kernel_size, stride, padding, dilation, ceil_mode
_AVG_POOL2D = (2, 2, 2, None, None, 0)  # kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
_SIZES: dict[str, tuple[int | None, ...]] = {
    "conv2d": _CONV2D + _ALLOW_TF32,
    "conv2d_relu": _CONV2D + _ALLOW_TF32,
    "conv2d_relu_max_pool2d": _CONV2D + _MAX_POOL2D + _ALLOW_TF32,
    "conv_transpose2d": _CONV_TRANSPOSE2D + _ALLOW_TF32,
    "relu": (),
    "max_pool2d": _MAX_POOL2D,
    "max_pool2d_with_code": _MAX_POOL2D,
    "avg_pool2d": _AVG_POOL2D,
}


def public_options(name: str, options: Sequence[Any]) -> list[Any]:
    """The tuple of options as the public op takes it: pairs, numbers and flags."""
    result: list[Any] = []
    at = 0
    for size in _SIZES[name]:
        if size:
            result.append(options[at : at + size])
        else:
            result.append(bool(options[at]) if size is None else options[at])
        at += size or 1
    return result


def flat_options(name: str, public: Sequence[Any]) -> Options:
    """The inverse of :func:`public_options`."""
    return tuple(value for size, option in zip(_SIZES[name], public) for value in (option if size else (option,)))


class Conv2d(Op):
    """Keeps input and weight."""

    name = "conv2d"
    tensors = 3
    lower_precision = True

    @staticmethod
    def compute(input: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        if tuning.enabled:
            return tuned.conv2d_forward(input, weight, bias, options, _NO_ACTIVATION)
        return _conv2d_forward(input, weight, bias, options, _NO_ACTIVATION)

    @staticmethod
    def save(ctx: Any, tensors: Any, options: Options, output: Tensor) -> None:
        ctx.options = options
        ctx.save_for_backward(_input_to_keep(ctx, tensors[0]), tensors[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return _conv2d_grads(ctx, grad_output, input, weight)


class Conv2dReLU(Op):
    """Keeps input, weight and output."""

    name = "conv2d_relu"
    tensors = 3
    lower_precision = True

    @staticmethod
    def compute(input: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        if tuning.enabled:
            return tuned.conv2d_forward(input, weight, bias, options, _RELU)
        return _conv2d_forward(input, weight, bias, options, _RELU)

    @staticmethod
    def save(ctx: Any, tensors: Any, options: Options, output: Tensor) -> None:
        ctx.options = options
        ctx.save_for_backward(_input_to_keep(ctx, tensors[0]), tensors[1], output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, output = ctx.saved_tensors
        if _differentiated():
            return _conv2d_grads(ctx, _relu_grad(grad_output, output), input, weight)
        mask = ctx.needs_input_grad[:3]
        if tuning.enabled:
            grads = tuned.conv2d_backward(grad_output, output, input, weight, ctx.options, mask)
        else:
            grads = _conv2d_relu_backward(grad_output, output, input, weight, ctx.options, mask)
        return _masked(grads, mask)


def conv2d_constant(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: Options,
    activation: int,
    packed: dict[Any, Tensor] | None,
    residual: Tensor | None,
) -> Tensor:
    """An activation (csrc/common/activation.h) of convolution + residual, of weights that do not change while
    ``packed`` is the same: what they were packed to is kept there. Without a gradient, on the CPU."""
    if packed is None:
        if tuning.enabled:
            return tuned.conv2d_forward(input, weight, bias, options, activation, None, residual)
        return _conv2d_forward(input, weight, bias, options, activation, residual)
    layout = (input.shape, input.stride(), options)
    kept = packed.get(layout)
    if kept is None:
        if len(packed) >= _KEPT_LAYOUTS:
            packed.clear()
        kept = _conv2d_pack_weight(input, weight, options)
        for other in list(packed.values()):
            if torch.equal(other[:_PACKED_HEADER].view(torch.int32), kept[:_PACKED_HEADER].view(torch.int32)):
                kept = other
        packed[layout] = kept
    return conv2d_packed(input, weight, bias, kept, options, activation, residual)


def conv2d_packed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packed: Tensor,
    options: Options,
    activation: int,
    residual: Tensor | None = None,
) -> Tensor:
    """The same by what :func:`conv2d_constant` kept for an input of this layout."""
    if tuning.enabled:
        return tuned.conv2d_forward(input, weight, bias, options, activation, packed, residual)
    if packed.numel() > 0:
        return _conv2d_packed_forward(input, weight, bias, packed, options, activation, residual)
    return _conv2d_forward(input, weight, bias, options, activation, residual)


class Conv2dReLUMaxPool2d(Op):
    """Keeps input, weight and one byte per pooled element; the second result, ``code``."""

    name = "conv2d_relu_max_pool2d"
    tensors = 3
    lower_precision = True
    private = True

    @staticmethod
    def compute(input: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Any:
        return _conv2d_relu_max_pool2d_forward(input, weight, bias, options, True)

    @staticmethod
    def infer(input: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Any:
        return _conv2d_relu_max_pool2d_forward(input, weight, bias, options, False)

    @staticmethod
    def save(ctx: Any, tensors: Any, options: Options, results: tuple[Tensor, Tensor]) -> None:
        ctx.options = options
        ctx.save_for_backward(_input_to_keep(ctx, tensors[0]), tensors[1], results[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, code = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if _differentiated():
            options = public_options(Conv2dReLUMaxPool2d.name, ctx.options)
            conv, pool = options[:4], options[4:8]
            size = conv_output_size(input, weight, *conv[:3])
            grad = _scatter(grad_output, _indices(code, size[1], *pool), size)
            grads = aten.conv2d_backward(grad, input, weight, conv, mask)
        else:
            grads = _conv2d_relu_max_pool2d_backward(grad_output, code, input, weight, ctx.options, mask)
        return _masked(grads, mask)


class ConvTranspose2d(Op):
    """Keeps input and weight."""

    name = "conv_transpose2d"
    tensors = 3
    lower_precision = True
    save = Conv2d.save

    @staticmethod
    def compute(input: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        return _conv_transpose2d_forward(input, weight, bias, options)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if _differentiated():
            stride, padding, output_padding, groups, dilation, _ = public_options(ConvTranspose2d.name, ctx.options)
            grads = aten.convolution_backward(
                grad_output, input, weight, stride, padding, dilation, True, output_padding, groups, mask
            )
        else:
            grads = _conv_transpose2d_backward(grad_output, input, weight, ctx.options, mask)
        return _masked(grads, mask)


class ReLU(Op):
    """Keeps the output."""

    name = "relu"

    @staticmethod
    def compute(input: Tensor, options: Options) -> Tensor:
        return _relu_forward(input)

    @staticmethod
    def save(ctx: Any, tensors: Any, options: Options, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return _relu_grad(grad_output, *ctx.saved_tensors), None


class MaxPool2d(Op):
    """Keeps the second result, the indices."""

    name = "max_pool2d"

    @staticmethod
    def compute(input: Tensor, options: Options) -> Any:
        return _max_pool2d_forward(input, options, 8)

    @staticmethod
    def infer(input: Tensor, options: Options) -> Any:
        return _max_pool2d_forward(input, options, 0)

    @staticmethod
    def save(ctx: Any, tensors: Any, options: Options, results: tuple[Tensor, Tensor]) -> None:
        ctx.options = options
        ctx.input_size = tensors[0].shape[-2:]
        ctx.set_materialize_grads(False)  # the indices have no gradient, not even one of zeros
        ctx.save_for_backward(results[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None = None) -> Grads:
        if grad_output is None:
            return None, None
        (indices,) = ctx.saved_tensors
        if _differentiated():
            return _scatter(grad_output, indices, ctx.input_size), None
        return _max_pool2d_backward(grad_output, indices, ctx.input_size, ctx.options), None


class MaxPool2dWithCode(MaxPool2d):
    """Keeps one byte per pooled element, ``code``: what ``max_pool2d`` runs where nobody asks for the indices."""

    name = "max_pool2d_with_code"
    functional = "max_pool2d"
    private = True

    @staticmethod
    def compute(input: Tensor, options: Options) -> Any:
        return _max_pool2d_forward(input, options, 1)

    infer = MaxPool2d.infer

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None = None) -> Grads:
        if grad_output is None or not _differentiated():
            return MaxPool2d.backward(ctx, grad_output)
        (code,) = ctx.saved_tensors
        kernel_size, stride, padding, dilation, _ = public_options(MaxPool2dWithCode.name, ctx.options)
        indices = _indices(code, ctx.input_size[1], kernel_size, stride, padding, dilation)
        return _scatter(grad_output, indices, ctx.input_size), None


class AvgPool2d(Op):
    """Keeps no tensor."""

    name = "avg_pool2d"

    @staticmethod
    def compute(input: Tensor, options: Options) -> Tensor:
        return _avg_pool2d_forward(input, *public_options(AvgPool2d.name, options))

    @staticmethod
    def save(ctx: Any, tensors: Any, options: Options, output: Tensor) -> None:
        ctx.options = options
        ctx.input_shape = tensors[0].shape
        ctx.channels_last = output.stride(-1) != 1  # also of 1x1 maps, which are contiguous in both formats

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        options = public_options(AvgPool2d.name, ctx.options)
        if _differentiated():
            # aten's formula reads no more than the shape of the input.
            input = grad_output.new_empty(()).expand(ctx.input_shape)
            grad = torch.ops.aten.avg_pool2d_backward(grad_output, input, *options)
            if ctx.channels_last:
                grad = grad.contiguous(memory_format=torch.channels_last)
        else:
            grad = _avg_pool2d_backward(grad_output, ctx.input_shape[-2:], ctx.channels_last, *options)
        return grad, None


#: name -> its Function.
OPS: dict[str, type[Op]] = {
    cls.name: cls
    for cls in (
        Conv2d,
        ConvTranspose2d,
        ReLU,
        MaxPool2d,
        MaxPool2dWithCode,
        AvgPool2d,
        Conv2dReLU,
        Conv2dReLUMaxPool2d,
    )
}
#: name -> the handle of its public op.
PUBLIC: dict[str, Any] = {name: op(name) for name in OPS}


def _input_to_keep(ctx: Any, input: Tensor) -> Tensor:
    """What backward needs of a convolution's input: with a frozen weight only its shape, in one element of memory."""
    # A channels_last input is kept: it also decides the layout of its gradient.
    if ctx.needs_input_grad[1] or not input.is_contiguous():
        return input
    return input.new_empty(()).expand(input.shape)


def _differentiated() -> bool:
    """Whether backward may itself be differentiated, or batched, in any of torch's ways."""
    return (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0  # in a dual_level(), where grad_output may have a tangent
        or torch._C._are_functorch_transforms_active()
    )


def _masked(grads: Grads, mask: Sequence[bool]) -> Grads:
    """The gradients of (input, weight, bias, options)."""
    return (grads[0] if mask[0] else None, grads[1] if mask[1] else None, grads[2] if mask[2] else None, None)


def _relu_grad(grad_output: Tensor, output: Tensor) -> Tensor:
    if _differentiated():
        return torch.ops.aten.threshold_backward(grad_output, output, 0)
    return _relu_backward(grad_output, output)


def _conv2d_grads(ctx: Any, grad_output: Tensor, input: Tensor, weight: Tensor) -> Grads:
    mask = ctx.needs_input_grad[:3]
    if _differentiated():
        grads = aten.conv2d_backward(grad_output, input, weight, public_options(Conv2d.name, ctx.options), mask)
    elif tuning.enabled:
        grads = tuned.conv2d_backward(grad_output, None, input, weight, ctx.options, mask)
    else:
        grads = _conv2d_backward(grad_output, input, weight, ctx.options, mask)
    return _masked(grads, mask)


def _scatter(grad_output: Tensor, index: Tensor, size: Sequence[int]) -> Tensor:
    """The [..., H, W] map of ``size`` (H, W) into which each pooled gradient is added where its window's winner is.

    ``index`` is the winner's h * W + w, or negative for none; the map has its memory format.
    """
    # torch.autograd.grad(is_grads_batched=True) knows reshape, but not flatten.
    maps, (P, Q) = index.shape[:-2], index.shape[-2:]
    grad = torch.where(index < 0, 0, grad_output).reshape(*maps, P * Q)
    dense = grad.new_zeros(*maps, size[0] * size[1])
    dense = dense.scatter_add(-1, index.clamp(min=0).reshape(*maps, P * Q), grad).reshape(*maps, *size)
    return dense.contiguous(memory_format=suggest_memory_format(index))


def _indices(code: Tensor, width: int, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The winners that codes name, as ``_scatter`` takes them; ``width`` is that of the un-pooled map."""
    rows, columns = (torch.arange(code.shape[d - 2], device=code.device) * stride[d] - padding[d] for d in (0, 1))
    tap = code.long()
    h = rows.view(-1, 1) + tap // kernel_size[1] * dilation[0]
    w = columns + tap % kernel_size[1] * dilation[1]
    return torch.where(code == CLIPPED, -1, h * width + w)


def conv_output_size(input: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> tuple[int, int]:
    """(P, Q) of a convolution; padding is (top, bottom, left, right)."""
    height, width = (
        (input.shape[d - 2] + padding[2 * d] + padding[2 * d + 1] - dilation[d] * (weight.shape[d + 2] - 1) - 1)
        // stride[d]
        + 1
        for d in (0, 1)
    )
    return height, width
