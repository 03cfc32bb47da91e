"""Which algorithm would take a convolution, and why: the planner's choice, without running it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

from . import tuned, tuning, tuning_cache
from .arguments import conv2d_options
from .autograd import public_options
from .nn import ConvReLU2d, ConvReLUMaxPool2d, _padded
from .registration import _conv2d
from .routing import why_not

__all__ = ["Explanation", "explain"]

_WHY = {
    "winograd": "3x3 of stride 1, with tiles and channels enough to repay the transforms",
    "direct": "few channels: their sums stay in registers, and patches are read where they lie",
    "depthwise": "one channel a group",
    "implicit_gemm": "a matrix product of patches and weights, which takes every shape",
}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; printed, it is a line for each pass.

    Attributes:
        forward: the forward pass's algorithm: "winograd", "direct", "depthwise", "implicit_gemm", or "torch" for
            torch's own op.
        grad_input: that of the input's gradient; None where it is not wanted.
        grad_weight: that of the weight's gradient.
        shape: what is convolved, in words.
        isa: the instruction set of the kernels.
        reason: why torch's op runs unmeasured; None where it does not.
        measured: what :class:`cnnfast.autotune` has found, while it is on: pass -> algorithm -> seconds. A pass that is
            not there has not run yet. Backward, "planned" stands for our algorithms, and "torch_for_input" for torch's
            op in their place for one gradient.
    """

    forward: str
    grad_input: str | None
    grad_weight: str
    shape: str
    isa: str | None
    reason: str | None = None
    measured: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        lines = [f"conv2d: {self.shape}" + (f", {self.isa}" if self.isa else "")]
        for name in ("forward", "grad_input", "grad_weight"):
            algorithm = getattr(self, name)
            if algorithm is not None:
                lines.append(f"{name + ':':12} {algorithm} ({self._why(name, algorithm)})")
        return "\n".join(lines)

    def _why(self, name: str, algorithm: str) -> str:
        if name not in self.measured:
            return self.reason or _WHY[algorithm]
        times = sorted(self.measured[name].items(), key=lambda item: item[1])
        return "measured: " + ", ".join(f"{other} {1e6 * seconds:.0f} us" for other, seconds in times)


def explain(module: nn.Conv2d, input: Tensor | Sequence[int], *, input_gradient: bool = True) -> Explanation:
    """Which algorithm runs a convolution on the CPU for inputs of a size and layout. Nothing is convolved.

    The choice depends on sizes, strides, dtype and instruction set alone: not on the number of threads. Where a result
    of Winograd's is not finite, another algorithm computes it again; converted networks that only infer keep the
    weights of small layers packed, and then sum directly sooner. While :class:`cnnfast.autotune` is on, its choice is
    told where there is one.

    Args:
        module: a convolution, ``cnnfast.Conv2d`` or torch's own.
        input: [N, C, H, W], or its sizes: then of the weight's dtype, in NCHW.
        input_gradient: whether the input's gradient is wanted in backward; a first layer's is not.

    Raises:
        TypeError: the module is no nn.Conv2d, or fused with a pooling, which has kernels of its own; or the input is
            neither a Tensor nor three or four sizes.
        RuntimeError: sizes that do not fit the module, as in a call.

    Example::

        >>> explanation = cnnfast.explain(cnnfast.Conv2d(64, 64, 3, padding=1), (8, 64, 56, 56))
        >>> explanation.forward
        'winograd'

    Source: csrc/cpu/conv2d_launch.h, whose questions these are; csrc/cpu/kernels/winograd_tiles.h has the cost model.
    """
    if not isinstance(module, nn.Conv2d) or isinstance(module, ConvReLUMaxPool2d):
        raise TypeError(
            f"explain: module must be one layer, an nn.Conv2d without pooling, but got module={type(module).__name__}"
        )
    weight = module.weight.detach()
    if not isinstance(input, Tensor):
        if not isinstance(input, Sequence) or len(input) not in (3, 4):
            raise TypeError(f"explain: input must be a Tensor or its sizes [N, C, H, W], but got input={input!r}")
        input = torch.empty(tuple(input), dtype=weight.dtype, device=weight.device)
    layout = "channels_last" if suggest_memory_format(input) is torch.channels_last else "NCHW"
    shape = f"{list(input.shape)} * {list(weight.shape)}, {str(weight.dtype).removeprefix('torch.')}, {layout}"
    reason = why_not("conv2d", False, input.detach(), weight, module.bias)
    if reason is None and not input.is_cpu:
        raise RuntimeError(f"explain: input must be on the CPU, but got device={input.device}")
    if reason is not None:
        return Explanation("torch", "torch" if input_gradient else None, "torch", shape, None, reason.text)
    input, padding = _padded(module, input.detach())
    R, S = weight.shape[2:]
    options = conv2d_options(False, "conv2d", R, S, module.stride, padding, module.dilation, module.groups)
    found = json.loads(torch.ops.cnnfast.explain_conv2d(input, weight, options, input_gradient))
    isa = json.loads(torch.ops.cnnfast.cpu_info())["isa"]
    measured = _measured(module, input, options, input_gradient) if tuning.enabled else {}
    chosen = {name: tuned.algorithm_of(choice, name) for name, choice in measured.items()}
    forward, grad_input, grad_weight = (
        chosen.get(name) or found.get(name) for name in ("forward", "grad_input", "grad_weight")
    )
    seconds = {name: choice.seconds for name, choice in measured.items()}
    return Explanation(forward, grad_input, grad_weight, shape, isa, measured=seconds)


def _measured(
    module: nn.Conv2d, input: Tensor, options: tuple[Any, ...], input_gradient: bool
) -> dict[str, tuning.Choice]:
    """The autotuner's choices for a module in training, and a gradient that is laid out like the output; where it has
    run only with what convert has fused with it, those."""
    weight, bias = module.weight.detach(), module.bias
    relu = isinstance(module, ConvReLU2d)
    grad_output = _conv2d(input, weight, None, *public_options("conv2d", options))
    mask = (input_gradient, True, bias is not None)
    forward = tuned.forward_key(input, weight, bias, options, 1 if relu else 0, None)
    backward = tuned.backward_key(grad_output, grad_output if relu else None, input, weight, options, mask)
    keys = {"forward": forward, "grad_input": backward, "grad_weight": backward}
    if not input_gradient:
        del keys["grad_input"]
    choices = {name: _choice(key) for name, key in keys.items()}
    return {name: choice for name, choice in choices.items() if choice is not None}


def _choice(key: tuning_cache.Key) -> tuning_cache.Choice | None:
    """What was chosen for a key; else for the same convolution with another activation or residual."""
    table = tuning.table
    if key in table:
        return table[key]
    op, tensors, options, variant, *others = key
    gradient = variant[1:2] if op == "conv2d_backward" else ()  # whether the input's is wanted
    for other, choice in table.copy().items():
        same = (op, options, others) == (other[0], other[2], list(other[4:]))
        if same and other[1][: len(tensors)] == tensors and other[3][1:2][: len(gradient)] == gradient:
            return choice
    return None
