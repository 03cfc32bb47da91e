"""BatchNorm by the statistics of the batch, with the sum and the activation behind it, as one op with one gradient.

Backward keeps the input and three numbers a channel: what lies between is computed again, and which elements the
activation clipped with it. After a sum that ReLU clipped it is read from the output, which the next layer keeps anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import folding
from .autograd import Grads, Op, _differentiated
from .library import function

__all__ = ["batch_norm", "fits"]

_batch_norm_forward = function("batch_norm_forward")
_batch_norm_backward = function("batch_norm_backward")

_PARAMETER_DTYPES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
_CLIPS = {"none": 0, "relu": 1, "relu6": 2}  # csrc/common/activation.h


def fits(input: Any, bn: Any) -> bool:
    """Whether there is a kernel for ``bn``, which trains, of this input, and nobody could tell the difference."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or folding.is_transformed():
        return False
    if type(input) is not Tensor or not input.is_cpu or input.layout is not torch.strided or input.dim() != 4:
        return False
    dtype, channels = _PARAMETER_DTYPES.get(input.dtype), bn.num_features
    # What is wrong, torch's own tells.
    if dtype is None or input.shape[1] != channels or input.numel() <= channels:
        return False
    statistics = (bn.running_mean, bn.running_var)
    if bn.eps <= 0 or (statistics[0] is None) != (statistics[1] is None):
        return False
    if any(tensor is not None and tensor.requires_grad for tensor in statistics):
        return False
    return all(
        tensor is None
        or (
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.dtype is dtype
            and tensor.is_cpu
            and tensor.shape == (channels,)
            and tensor.is_contiguous()
        )
        for tensor in (bn.weight, bn.bias, *statistics)
    )


def batch_norm(input: Tensor, bn: Any, activation: str = "none", residual: Tensor | None = None) -> Tensor:
    """``activation(bn(input) + residual)``, and what ``bn`` keeps of the batch.

    Args:
        input: [N, C, H, W], which :func:`fits`.
        bn: an nn.BatchNorm2d in training that fits it.
        activation: "none", "relu" or "relu6".
        residual: of the shape and dtype of input.
    """
    # As nn.BatchNorm2d.forward. As by torch's op, too, versions of the running statistics stay what they are: that
    # op keeps them for backward, where the module is called twice.
    momentum = 0.0 if bn.momentum is None else bn.momentum
    running_mean = running_var = None
    if bn.track_running_stats:
        running_mean, running_var = bn.running_mean, bn.running_var
        if bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
            if bn.momentum is None:
                momentum = 1.0 / float(bn.num_batches_tracked)
    weight, bias = bn.weight, bn.bias
    options = (running_mean, running_var, momentum, bn.eps, _CLIPS[activation])
    operands = (input, residual, weight, bias)
    if torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in operands):
        return BatchNorm.apply(*operands, options)
    return BatchNorm.compute(*operands, options)[0]


class BatchNorm(Op):
    """Keeps input and weight; the output where a residual was added and clipped. There is no public op of it."""

    name = "batch_norm"
    private = True

    @staticmethod
    def compute(
        input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, options: tuple[Any, ...]
    ) -> Any:
        return _batch_norm_forward(input, residual, weight, bias, *options)

    @staticmethod
    def save(ctx: Any, tensors: Any, options: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
        input, residual, weight, _ = tensors
        output, mean, invstd, shift = results
        ctx.eps, ctx.activation = options[3:]
        clipped_sum = output if residual is not None and ctx.activation else None
        ctx.save_for_backward(input, clipped_sum, weight, mean, invstd, shift)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, output, weight, mean, invstd, shift = ctx.saved_tensors
        mask = ctx.needs_input_grad[:4]
        if _differentiated():
            grad = grad_output
            if ctx.activation:
                clipped = _clipped(input, output, weight, invstd, shift, ctx.activation)
                grad = torch.where(clipped, 0, grad_output)
            of_norm = torch.ops.aten.native_batch_norm_backward(
                grad, input, weight, None, None, mean, invstd, True, ctx.eps, (mask[0], *mask[2:])
            )
            grads: Any = (of_norm[0], grad, *of_norm[1:])
        else:
            grads = _batch_norm_backward(grad_output, input, output, weight, mean, invstd, shift, ctx.activation, mask)
            if output is None:  # a residual that was not clipped
                grads = (grads[0], grad_output, *grads[2:])
        return (*(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True)), None)


@torch.no_grad()
def _clipped(
    input: Tensor, output: Tensor | None, weight: Tensor | None, invstd: Tensor, shift: Tensor, activation: int
) -> Tensor:
    """Where the activation let no gradient through, as the kernels see it: their multiply-add rounds once."""
    if output is None:
        scale = invstd if weight is None else (weight.double() * invstd.double()).to(invstd.dtype)
        scale, shift = scale.double().view(-1, 1, 1), shift.double().view(-1, 1, 1)
        output = (input.double() * scale + shift).to(invstd.dtype).to(input.dtype)
    clipped = output <= 0
    return clipped | (output >= 6) if activation == _CLIPS["relu6"] else clipped
