"""What a fused forward calls: convolution and what follows it as one op where nobody could tell, or, in training,
BatchNorm and what follows it; else one by one.

A block is ``pool(activation(bn(conv(input)) + residual))`` without those that are None. Where a residual is added,
something else may have run since the convolution: then :func:`begin_block` stands where that was called, and
:func:`end_block` where it ends, so that modules which must run one by one do so in their old order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn.modules import module as _nn_module

from . import functional
from .folding import Folded, folded, unfolded
from .nn import AvgPool2d, Conv2d, MaxPool2d, ReLU, _padded
from .normalization import batch_norm, fits

#: Methods that some programs replace on the object.
OVERRIDES = frozenset({"forward", "_conv_forward"})
RELUS = (nn.ReLU, ReLU)
_ACTIVATIONS: dict[type[nn.Module], Literal["relu", "relu6", "silu", "hardswish"]] = {
    nn.ReLU: "relu",
    ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}


_SHORTCUT_LAYERS = (nn.Conv2d, Conv2d, nn.BatchNorm2d, nn.AvgPool2d, AvgPool2d, nn.Identity)


#: Of functional.conv2d.
_Arguments = tuple[Tensor, Tensor, Tensor | None, Any, Any, Any, int]


class Sum(nn.Module):
    """The sum that a forward writes as ``function(input, residual)`` or, if ``swapped``, the other way round."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], swapped: bool) -> None:
        super().__init__()
        self.function, self.swapped = function, swapped

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        return self.function(residual, input) if self.swapped else self.function(input, residual)


#: The stages of a block: of which types their modules are.
STAGES: tuple[tuple[type[nn.Module], ...], ...] = (
    (Conv2d,),
    (nn.BatchNorm2d,),
    (Sum,),
    tuple(_ACTIVATIONS),
    (nn.MaxPool2d, MaxPool2d),
)
CONV, BN, SUM, ACTIVATION, POOL = range(len(STAGES))


def stand_in(module: nn.Module) -> nn.Module:
    """``module``, for a function that a forward calls: nobody could have hooked it."""
    module.__dict__["_stands_in"] = True
    return module


def _call(module: nn.Module | None, *inputs: Tensor) -> Tensor:
    if module is None:
        return inputs[0]
    # Global hooks never saw a module where there is only a function.
    return module.forward(*inputs) if "_stands_in" in module.__dict__ else module(*inputs)


def run_block(
    input: Tensor, conv: nn.Module, bn: nn.Module | None, activation: nn.Module | None, pool: nn.Module | None
) -> Tensor:
    """A block without a residual; a pool is behind a ReLU."""
    name = name_of(activation)
    only_constants = name is None or type(activation) not in RELUS
    parameters = _parameters(input, conv, bn, activation, pool, only_constants)
    if parameters is None:
        convolved = _call(conv, input)
        if bn is not None and _may_normalize(convolved, bn):
            return _call(pool, _normalized(convolved, bn, activation))
        return _call(pool, _call(activation, _call(bn, convolved)))
    arguments, packed = _arguments(input, conv, parameters)
    # With a BatchNorm that is folded, no gradient is wanted.
    if pool is None and (bn is not None or only_constants):
        output = None if name is None else functional.conv2d_constant(*arguments, name, packed)
        if output is not None:
            return output
    if type(activation) not in RELUS:
        return _call(pool, _call(activation, functional.conv2d(*arguments)))
    if pool is None:
        return functional.conv2d_relu(*arguments)
    return functional.conv2d_relu_max_pool2d(*arguments, **pool_arguments(pool))


class _Begun(NamedTuple):
    """A convolution that is still to be run."""

    arguments: _Arguments
    packed: dict[Any, Tensor] | None


class _BegunNorm(NamedTuple):
    """A BatchNorm in training that is still to be run, and the convolution's output that it is to take."""

    input: Tensor
    bn: nn.Module


def begin_block(
    input: Tensor, conv: nn.Module, bn: nn.Module | None, *meanwhile: nn.Module
) -> Tensor | _Begun | _BegunNorm:
    """``bn(conv(input))``, or what :func:`end_block` needs to run it; ``meanwhile`` others run."""
    parameters = _parameters(input, conv, bn, None, None, True)
    if parameters is not None and all(map(changes_nothing, meanwhile)):
        return _Begun(*_arguments(input, conv, parameters))
    convolved = _call(conv, input)
    if bn is not None and _may_normalize(convolved, bn) and _may_wait(bn, meanwhile):
        return _BegunNorm(convolved, bn)
    return _call(bn, convolved)


def end_block(
    begun: Tensor | _Begun | _BegunNorm, residual: Tensor, add: nn.Module, activation: nn.Module | None
) -> Tensor:
    """``activation(begun + residual)``, of what begin_block returned."""
    if isinstance(begun, _BegunNorm):
        if _may_be_added(add, begun.input, residual):
            return _normalized(begun.input, begun.bn, activation, residual)
        begun = batch_norm(begun.input, begun.bn)
    if isinstance(begun, _Begun):
        arguments, packed = begun
        name = None if is_observed(activation) or not may_fuse(add, residual, *arguments[:2]) else name_of(activation)
        output = None if name is None else functional.conv2d_constant(*arguments, name, packed, residual)
        if output is not None:
            return output
        output = functional.conv2d_constant(*arguments, "none", packed)
        begun = functional.conv2d(*arguments) if output is None else output
    return _call(activation, _call(add, begun, residual))


def _may_normalize(input: Any, bn: nn.Module) -> bool:
    """Whether a BatchNorm in training may run together with what follows it."""
    return bn.training and type(bn) in STAGES[BN] and not (observes_all() or is_observed(bn)) and fits(input, bn)


def _may_wait(bn: nn.Module, meanwhile: tuple[nn.Module, ...]) -> bool:
    """Whether a BatchNorm may take down its batch after others have run."""
    layers = [layer for other in meanwhile for layer in other.modules()]
    shared = any(
        layer is bn or (bn.running_mean is not None and getattr(layer, "running_mean", None) is bn.running_mean)
        for layer in layers
    )
    return not shared and all(map(changes_nothing, meanwhile))


def _may_be_added(add: nn.Module, input: Tensor, residual: Any) -> bool:
    """Whether the sum of a BatchNorm of ``input`` and a residual is laid out as the input is."""
    return (
        type(residual) is Tensor
        and residual.is_cpu
        and residual.layout is torch.strided
        and residual.dtype is input.dtype
        and residual.shape == input.shape
        and _has_one_layout(residual)
        # A sum is laid out as its first operand.
        and (not add.swapped or residual.stride() == input.stride())
    )


def _has_one_layout(tensor: Tensor) -> bool:
    """Whether channels_last and contiguous are two things, so that torch's sum can be laid out in one way only."""
    return tensor.dim() == 4 and min(tensor.shape[1:]) > 1


def _normalized(input: Tensor, bn: nn.Module, activation: nn.Module | None, residual: Tensor | None = None) -> Tensor:
    """``activation(bn(input) + residual)``, the activation with the rest where it only clips."""
    name = name_of(activation)
    # Of ReLU6 behind a sum the output would be kept for backward, but may be written to: torch's keeps its input.
    clips = name in ("none", "relu") or (name == "relu6" and residual is None)
    if name is not None and clips and not is_observed(activation):
        return batch_norm(input, bn, name, residual)
    return _call(activation, batch_norm(input, bn, residual=residual))


def may_fuse(add: nn.Module, residual: Any, input: Tensor, weight: Tensor) -> bool:
    """Whether the sum with a residual is the same tensor, and to the same gradients, where it is written at once."""
    if not isinstance(residual, Tensor) or (torch.is_grad_enabled() and residual.requires_grad):
        return False
    if not _has_one_layout(residual):
        return False
    if not add.swapped:
        return True
    # A sum is laid out as its first operand; a convolution as its input or its weight.
    channels_last = any(suggest_memory_format(tensor) is torch.channels_last for tensor in (input, weight))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return residual.dim() == 4 and residual.is_contiguous(memory_format=memory_format)


def pool_arguments(pool: nn.Module) -> dict[str, Any]:
    """Those of functional.conv2d_relu_max_pool2d."""
    names = {f"pool_{name}": getattr(pool, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return {**names, "ceil_mode": pool.ceil_mode}


def name_of(activation: nn.Module | None) -> Literal["none", "relu", "relu6", "silu", "hardswish"] | None:
    """What functional.conv2d_constant calls it; None for another."""
    if activation is None:
        return "none"
    if isinstance(activation, nn.ReLU6) and (activation.min_val, activation.max_val) != (0, 6):
        return None
    return _ACTIVATIONS.get(type(activation))


def _arguments(input: Tensor, conv: nn.Module, parameters: Folded) -> tuple[_Arguments, dict[Any, Tensor] | None]:
    """Those of functional.conv2d, and what the weight was packed to."""
    assert isinstance(conv, Conv2d)
    weight, bias, packed = parameters
    input, padding = _padded(conv, input)
    return (input, weight, bias, conv.stride, padding, conv.dilation, conv.groups), packed


def _parameters(
    input: Tensor,
    conv: nn.Module,
    bn: nn.Module | None,
    activation: nn.Module | None,
    pool: nn.Module | None,
    only_constants: bool,
) -> Folded | None:
    """Weight and bias with which one convolution does what the modules do; None where somebody could tell, or they
    are to be constants and are not."""
    if observes_all() or is_observed(conv) or is_observed(bn) or is_observed(activation) or is_observed(pool):
        return None
    for stage, module in ((CONV, conv), (BN, bn), (ACTIVATION, activation), (POOL, pool)):
        if module is not None and type(module) not in STAGES[stage]:
            return None
    assert isinstance(conv, Conv2d)
    if bn is not None:
        assert isinstance(bn, nn.BatchNorm2d)
        return folded(input, conv, bn)
    return unfolded(input, conv) if only_constants else Folded(conv.weight, conv.bias, None)


def observes_all() -> bool:
    """Whether there are hooks on every module."""
    return bool(
        _nn_module._global_forward_hooks
        or _nn_module._global_forward_pre_hooks
        or _nn_module._global_backward_hooks
        or _nn_module._global_backward_pre_hooks
    )


def is_observed(module: nn.Module | None) -> bool:
    """Whether a module's own call does more than its class's forward."""
    if module is None:
        return False
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("_compiled_call_impl") is not None
        or not OVERRIDES.isdisjoint(own)
    )


def changes_nothing(module: nn.Module) -> bool:
    """Whether a module, a residual's way, writes to no tensor that it is given."""
    return all(
        (type(layer) in _SHORTCUT_LAYERS or is_sequential(layer)) and not is_observed(layer)
        for layer in module.modules()
    )


def is_sequential(module: nn.Module) -> bool:
    """Whether a container calls its children one after the other, and that is all."""
    forward = type(module).forward
    return getattr(forward, "__wrapped__", forward) is nn.Sequential.forward  # a fused one's is wrapped
