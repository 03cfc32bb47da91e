"""The torch.autograd.Function of each op, and the backward formulas, each once.

``forward`` has ctx as its first argument: that is what eager mode calls, at about a third of what a registered
autograd formula or a setup_context Function costs per call. It is ``compute``, the raw op, followed by ``save``.
``compute``, ``save`` and ``backward`` are also what registration.py gives the public op for torch.compile and direct
callers; the arguments and results are therefore exactly those of the public op.

The raw backward ops have no derivative of their own. Where backward is itself recorded (create_graph=True), the
formulas run on torch's differentiable ops instead: see ``_convolution_backward`` and ``_scatter``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd import Function

from .library import op

_conv2d_forward = op("conv2d_forward")
_conv2d_backward = op("conv2d_backward")
_conv_transpose2d_backward = op("conv_transpose2d_backward")
_conv2d_relu_max_pool2d_forward = op("conv2d_relu_max_pool2d_forward")
_conv2d_relu_max_pool2d_backward = op("conv2d_relu_max_pool2d_backward")
_relu_backward = op("relu_backward")
_max_pool2d_forward = op("max_pool2d_forward")
_max_pool2d_backward = op("max_pool2d_backward")
_avg_pool2d_backward = op("avg_pool2d_backward")

_CLIPPED = 255  # csrc/common/shape.h, kClipped

Ints = Sequence[int]
Grads = tuple[Tensor | None, ...]


class Op(Function):
    """An op of the library: how it runs, what it keeps for backward, its backward formula."""

    #: The name in torch.ops.cnnfast and cnnfast.functional.
    name: ClassVar[str]
    #: Whether autocast runs it in the lower precision, as it does torch's own.
    lower_precision: ClassVar[bool] = False
    #: The public op's arguments -> its results.
    compute: ClassVar[Callable[..., Any]]
    #: (ctx, the arguments, the results): keeps what backward needs.
    save: ClassVar[Callable[..., None]]
    #: As ``compute``, without the results that only backward needs.
    infer: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        if "infer" not in vars(cls):
            cls.infer = cls.compute

        def forward(ctx: Any, *args: Any) -> Any:
            output = cls.compute(*args)
            cls.save(ctx, args, output)
            return output

        cls.forward = staticmethod(forward)  # type: ignore[method-assign]
        # Function.apply itself first asks for a setup_context and for torch.func transforms, at a fifth of the cost of
        # a small call; there is none of the former here, and routing.py has sent the latter to torch's own op.
        cls.apply = super(Function, cls).apply  # type: ignore[method-assign, misc]


class Conv2d(Op):
    """Keeps input and weight."""

    name = "conv2d"
    lower_precision = True

    @staticmethod
    def compute(*args: Any) -> Tensor:
        return _conv2d_forward(*args, False)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.options = inputs
        ctx.save_for_backward(_input_to_keep(ctx, input), weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return _conv2d_grads(ctx, grad_output, input, weight)


class Conv2dReLU(Op):
    """Keeps input, weight and output."""

    name = "conv2d_relu"
    lower_precision = True

    @staticmethod
    def compute(*args: Any) -> Tensor:
        return _conv2d_forward(*args, True)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.options = inputs
        ctx.save_for_backward(_input_to_keep(ctx, input), weight, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, output = ctx.saved_tensors
        return _conv2d_grads(ctx, _relu_grad(grad_output, output), input, weight)


class Conv2dReLUMaxPool2d(Op):
    """Keeps input, weight and one byte per pooled element; the second result, ``code``."""

    name = "conv2d_relu_max_pool2d"
    lower_precision = True

    @staticmethod
    def compute(*args: Any) -> Any:
        return _conv2d_relu_max_pool2d_forward(*args, True)

    @staticmethod
    def infer(*args: Any) -> Any:
        return _conv2d_relu_max_pool2d_forward(*args, False)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, weight, _, *ctx.options = inputs
        ctx.set_materialize_grads(False)  # code has no gradient, not even one of zeros
        ctx.save_for_backward(_input_to_keep(ctx, input), weight, output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> Grads:
        nones = (None,) * len(ctx.options)
        if grad_output is None:
            return None, None, None, *nones
        input, weight, code = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            conv, pool = ctx.options[:4], ctx.options[4:8]
            size = conv_output_size(input, weight, *conv[:3])
            grad = _scatter(grad_output, _winners(code, size[1], *pool), size)
            grads = _convolution_backward(grad, input, weight, conv, mask)
        else:
            grads = _conv2d_relu_max_pool2d_backward(grad_output, code, input, weight, *ctx.options, mask)
        return *_masked(grads, mask), *nones


class ConvTranspose2d(Op):
    """Keeps input and weight."""

    name = "conv_transpose2d"
    lower_precision = True
    compute = staticmethod(op("conv_transpose2d_forward"))
    save = Conv2d.save

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            stride, padding, output_padding, groups, dilation = ctx.options
            grads = _aten_convolution_backward(
                grad_output, input, weight, stride, padding, dilation, True, output_padding, groups, mask
            )
        else:
            grads = _conv_transpose2d_backward(grad_output, input, weight, *ctx.options, mask)
        return *_masked(grads, mask), None, None, None, None, None


class ReLU(Op):
    """Keeps the output."""

    name = "relu"
    compute = staticmethod(op("relu_forward"))

    @staticmethod
    def save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return _relu_grad(grad_output, *ctx.saved_tensors)


class MaxPool2d(Op):
    """Keeps the second result, the indices."""

    name = "max_pool2d"

    @staticmethod
    def compute(*args: Any) -> Any:
        return _max_pool2d_forward(*args, True)

    @staticmethod
    def infer(*args: Any) -> Any:
        return _max_pool2d_forward(*args, False)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.input_size = inputs[0].shape[-2:]
        ctx.set_materialize_grads(False)  # the indices have no gradient, not even one of zeros
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> Grads:
        nones = (None,) * 5
        if grad_output is None:
            return None, *nones
        (indices,) = ctx.saved_tensors
        backward = _scatter if torch.is_grad_enabled() else _max_pool2d_backward
        return backward(grad_output, indices, ctx.input_size), *nones


class AvgPool2d(Op):
    """Keeps no tensor."""

    name = "avg_pool2d"
    compute = staticmethod(op("avg_pool2d_forward"))

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, *ctx.options = inputs
        ctx.input_shape = input.shape
        ctx.channels_last = output.stride(-1) != 1  # also of 1x1 maps, which are contiguous in both formats

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        if torch.is_grad_enabled():
            # aten's formula reads no more than the shape of the input.
            input = grad_output.new_empty(()).expand(ctx.input_shape)
            grad = torch.ops.aten.avg_pool2d_backward(grad_output, input, *ctx.options)
            if ctx.channels_last:
                grad = grad.contiguous(memory_format=torch.channels_last)
        else:
            grad = _avg_pool2d_backward(grad_output, ctx.input_shape[-2:], ctx.channels_last, *ctx.options)
        return grad, None, None, None, None, None, None


#: name -> its Function.
OPS: dict[str, type[Op]] = {
    cls.name: cls for cls in (Conv2d, ConvTranspose2d, ReLU, MaxPool2d, AvgPool2d, Conv2dReLU, Conv2dReLUMaxPool2d)
}
#: name -> the handle of its public op.
PUBLIC: dict[str, Any] = {name: op(name) for name in OPS}


def _input_to_keep(ctx: Any, input: Tensor) -> Tensor:
    """What backward needs of a convolution's input: with a frozen weight only its shape, in one element of memory."""
    # A channels_last input is kept: it also decides the layout of its gradient.
    if ctx.needs_input_grad[1] or not input.is_contiguous():
        return input
    return input.new_empty(()).expand(input.shape)


def _masked(grads: Grads, mask: Sequence[bool]) -> Grads:
    return tuple(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))


def _relu_grad(grad_output: Tensor, output: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return torch.ops.aten.threshold_backward(grad_output, output, 0)
    return _relu_backward(grad_output, output)


def _conv2d_grads(ctx: Any, grad_output: Tensor, input: Tensor, weight: Tensor) -> Grads:
    mask = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        grads = _convolution_backward(grad_output, input, weight, ctx.options, mask)
    else:
        grads = _conv2d_backward(grad_output, input, weight, *ctx.options, mask)
    return *_masked(grads, mask), None, None, None, None


def _convolution_backward(grad_output: Tensor, input: Tensor, weight: Tensor, options: Any, mask: Any) -> Grads:
    """conv2d_backward in torch's differentiable ops."""
    stride, padding, dilation, groups = options
    top, bottom, left, right = padding
    common = (min(top, bottom), min(left, right))
    extra = (left - common[1], right - common[1], top - common[0], bottom - common[0])
    # aten pads both sides alike; the rest of an asymmetric padding is made of zeros, and cropped from the gradient.
    padded = F.pad(input, extra) if any(extra) else input
    grad_input, grad_weight, grad_bias = _aten_convolution_backward(
        grad_output, padded, weight, stride, common, dilation, False, (0, 0), groups, mask
    )
    if grad_input is not None and any(extra):
        grad_input = F.pad(grad_input, [-size for size in extra])
    return grad_input, grad_weight, grad_bias


def _aten_convolution_backward(
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
        grad_output, input = grad_output.unsqueeze(0), input.unsqueeze(0)
    channels = [grad_output.shape[1]]
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_output, input, weight, channels, stride, padding, dilation, transposed, output_padding, groups, list(mask)
    )
    if single and grad_input is not None:
        grad_input = grad_input.squeeze(0)
    return grad_input, grad_weight, grad_bias


def _scatter(grad_output: Tensor, index: Tensor, size: Sequence[int]) -> Tensor:
    """The [..., H, W] map of ``size`` (H, W) into which each pooled gradient is added where its window's winner is.

    ``index`` is the winner's h * W + w, or negative for none; the map has its memory format.
    """
    grad = torch.where(index < 0, 0, grad_output).flatten(-2)
    dense = grad.new_zeros(*grad.shape[:-1], size[0] * size[1])
    dense = dense.scatter_add(-1, index.clamp(min=0).flatten(-2), grad).unflatten(-1, tuple(size))
    return dense.contiguous(memory_format=suggest_memory_format(index))


def _winners(code: Tensor, width: int, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The winners of the fused op's windows as ``_scatter`` takes them; ``width`` is that of the un-pooled map."""
    rows, columns = (torch.arange(code.shape[d - 2], device=code.device) * stride[d] - padding[d] for d in (0, 1))
    tap = code.long()
    h = rows.view(-1, 1) + tap // kernel_size[1] * dilation[0]
    w = columns + tap % kernel_size[1] * dilation[1]
    return torch.where(code == _CLIPPED, -1, h * width + w)


def conv_output_size(input: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> tuple[int, int]:
    """(P, Q) of a convolution; padding is (top, bottom, left, right)."""
    height, width = (
        (input.shape[d - 2] + padding[2 * d] + padding[2 * d + 1] - dilation[d] * (weight.shape[d + 2] - 1) - 1)
        // stride[d]
        + 1
        for d in (0, 1)
    )
    return height, width
