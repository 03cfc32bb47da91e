"""Convolution by the algorithm that :class:`cnnfast.autotune` has found the fastest; autograd.py asks while that is on.

A key holds all that decides which algorithm is the fastest, but for values and places in memory. The instruction set is
that of the table (tuning_cache.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import aten, routing, tuning
from .library import function
from .tuning_cache import Choice, Key

_conv2d_forward = function("conv2d_forward")
_conv2d_chosen_forward = function("conv2d_chosen_forward")
_conv2d_packed_forward = function("conv2d_packed_forward")
_conv2d_backward = function("conv2d_backward")
_conv2d_relu_backward = function("conv2d_relu_backward")
_explain_conv2d = function("explain_conv2d")

#: Names beside those of our algorithms: our kernels as the planner chooses them, torch's own op, and torch's op for one
#: of two gradients.
PLANNED, TORCH, TORCH_FOR_INPUT, TORCH_FOR_WEIGHT = "planned", "torch", "torch_for_input", "torch_for_weight"
_RELU = 1
#: By number (csrc/common/activation.h), in place.
_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    F.relu_,
    lambda x: F.relu6(x, inplace=True),
    lambda x: F.silu(x, inplace=True),
    lambda x: F.hardswish(x, inplace=True),
)

Ints = tuple[Any, ...]
Grads = tuple[Tensor | None, ...]


def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: Ints,
    activation: int,
    kept: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """An activation of convolution + residual; ``kept`` is the weight as conv2d_pack_weight has packed it, or empty."""
    if kept is not None and kept.numel() == 0:
        kept = None
    arguments = (input, weight, bias, options, activation, kept, residual)
    if not _applies(input):
        return _forward_by(PLANNED, *arguments)
    key = forward_key(*arguments)
    choice = tuning.table.get(key)
    if choice is None:
        output = _forward_by(PLANNED, *arguments)  # which says what is wrong with the arguments, if anything is
        if output.numel() == 0:
            return output
        choice = tuning.measure(key, lambda: _candidates(*arguments), lambda name: _forward_by(name, *arguments))
        if choice is None:
            return output
    algorithm = _allowed(choice)
    if algorithm == TORCH:
        name = "conv2d_relu" if activation == _RELU else "conv2d"
        routing.record(name, routing.MEASURED, "runs on torch's own op")
    return _forward_by(algorithm, *arguments)


def conv2d_backward(
    grad_output: Tensor, output: Tensor | None, input: Tensor, weight: Tensor, options: Ints, mask: Any
) -> Grads:
    """The gradients that the mask wants, of input, weight and bias; with ``output``, of a convolution and ReLU."""
    arguments = (grad_output, output, input, weight, options, mask)
    if not _applies(grad_output):
        return _backward_by(PLANNED, *arguments)
    key = backward_key(*arguments)
    choice = tuning.table.get(key)
    if choice is None:
        grads = _backward_by(PLANNED, *arguments)
        if grad_output.numel() == 0 or routing.is_strict():
            return grads
        # Our kernels are not tried one by one: those of small layers compute both gradients in one pass.
        names = [PLANNED, TORCH, *((TORCH_FOR_INPUT, TORCH_FOR_WEIGHT) if mask[0] and any(mask[1:]) else ())]
        choice = tuning.measure(key, lambda: names, lambda name: _backward_by(name, *arguments))
        if choice is None:
            return grads
    return _backward_by(_allowed(choice), *arguments)


def algorithm_of(choice: Choice, name: str) -> str | None:
    """What was chosen for a pass, forward, grad_input or grad_weight; None where that is left to the planner."""
    if choice.algorithm == PLANNED:
        return None
    if choice.algorithm == TORCH_FOR_INPUT:
        return TORCH if name == "grad_input" else None
    if choice.algorithm == TORCH_FOR_WEIGHT:
        return TORCH if name == "grad_weight" else None
    return choice.algorithm


def forward_key(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: Ints,
    activation: int,
    kept: Tensor | None,
    residual: Tensor | None = None,
) -> Key:
    read = (input, weight) if residual is None else (input, weight, residual)
    tensors = tuple((tensor.shape, tensor.stride()) for tensor in read)
    variant = (activation, bias is not None, kept is not None)
    return ("conv2d_forward", tensors, options, variant, input.dtype, torch.get_num_threads())


def backward_key(
    grad_output: Tensor, output: Tensor | None, input: Tensor, weight: Tensor, options: Ints, mask: Any
) -> Key:
    tensors = tuple((tensor.shape, tensor.stride()) for tensor in (grad_output, input, weight))
    variant = (output is not None, *mask)
    return ("conv2d_backward", tensors, options, variant, input.dtype, torch.get_num_threads())


def _applies(tensor: Tensor) -> bool:
    """Whether nobody would see the trials, or mind what the clock decides."""
    return not (
        torch.are_deterministic_algorithms_enabled()
        or torch.compiler.is_compiling()
        or type(tensor) not in routing._PLAIN_TYPES
        or not tensor.is_cpu
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def _allowed(choice: Choice) -> str:
    """The algorithm; in strict mode the fastest of ours, whatever was measured before."""
    if not choice.algorithm.startswith(TORCH) or not routing.is_strict():
        return choice.algorithm
    seconds = {name: time for name, time in choice.seconds.items() if not name.startswith(TORCH)}
    return min(seconds, key=seconds.__getitem__, default=PLANNED)


def _candidates(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: Ints,
    activation: int,
    kept: Tensor | None,
    residual: Tensor | None,
) -> list[str]:
    found = json.loads(_explain_conv2d(input, weight, options, False))
    # Where there are packed weights, the planner takes them.
    first = "implicit_gemm" if kept is not None else found["forward"]
    others = [name for name in found["candidates"] if name != first]
    return [first, *others, *(() if routing.is_strict() else (TORCH,))]


def _forward_by(
    algorithm: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: Ints,
    activation: int,
    kept: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    if algorithm == TORCH:
        output = aten.conv2d(input, weight, bias, options[:2], options[2:6], options[6:8], options[8])
        if residual is not None:
            output += residual
        return _ACTIVATIONS[activation](output)
    if kept is not None and algorithm in (PLANNED, "implicit_gemm"):
        return _conv2d_packed_forward(input, weight, bias, kept, options, activation, residual)
    if algorithm == PLANNED:
        return _conv2d_forward(input, weight, bias, options, activation, residual)
    return _conv2d_chosen_forward(input, weight, bias, options, activation, residual, algorithm)


def _backward_by(
    algorithm: str, grad_output: Tensor, output: Tensor | None, input: Tensor, weight: Tensor, options: Ints, mask: Any
) -> Grads:
    if algorithm == PLANNED:
        if output is None:
            return _conv2d_backward(grad_output, input, weight, options, mask)
        return _conv2d_relu_backward(grad_output, output, input, weight, options, mask)
    if output is not None:
        grad_output = torch.ops.aten.threshold_backward(grad_output, output, 0)
    public = (options[:2], options[2:6], options[6:8], options[8])
    if algorithm == TORCH:
        return aten.conv2d_backward(grad_output, input, weight, public, mask)
    of_input, others = (True, False, False), (False, *mask[1:])
    if algorithm == TORCH_FOR_INPUT:
        grad_input = aten.conv2d_backward(grad_output, input, weight, public, of_input)[0]
        return (grad_input, *_conv2d_backward(grad_output, input, weight, options, others)[1:])
    grad_input = _conv2d_backward(grad_output, input, weight, options, of_input)[0]
    return (grad_input, *aten.conv2d_backward(grad_output, input, weight, public, others)[1:])
