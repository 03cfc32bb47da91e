"""BatchNorm folded into the convolution before it, and kept folded and packed for as long as neither changes.

What is kept belongs to one convolution and vanishes with it; no copy, pickle or state_dict knows of it. It is used
while every tensor that it was made of has the same version and the same fingerprint: of its address, sizes and strides,
and of its elements, since writes through ``tensor.data`` or a NumPy view leave the version as it is. Of a large tensor
it looks at some 500 elements; after such a write to a small part of one, call :func:`cnnfast.repack`.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import library
from .nn import Conv2d

__all__ = ["Folded", "are_constants", "fold", "folded", "is_plain_inference", "is_transformed", "repack", "unfolded"]

_fingerprint = library.function("fingerprint")


class Folded(NamedTuple):
    """Weight and bias of one convolution, and what its weight was packed to where it is kept (None: it is not)."""

    weight: Tensor
    bias: Tensor | None
    packed: dict[Any, Tensor] | None


class _Kept(NamedTuple):
    eps: float
    versions: list[int | None]
    fingerprint: int
    folded: Folded

    def is_of(self, tensors: tuple[Tensor | None, ...], eps: float) -> bool:
        return eps == self.eps and _versions(tensors) == self.versions and _fingerprint(*tensors) == self.fingerprint


_kept: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def repack(module: nn.Module) -> None:
    """Forgets what was made of the parameters of a module; it is made anew at the next call.

    Needed only after a small part of a parameter was written through ``parameter.data`` or a NumPy view of it: all else
    is noticed. What is kept of a model costs the memory of its convolutions' weights once or, where they are read from
    a copy in the kernels' order, twice; this gives it back, too.

    Args:
        module: a converted module, whose children count as well. Others have nothing to forget.

    Raises:
        TypeError: module is no nn.Module.

    Example:
        >>> model = cnnfast.convert(nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU())).eval()
        >>> model[0].weight.data[0, 0] = 0.0
        >>> cnnfast.repack(model)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"repack: module must be an nn.Module, but got {type(module).__name__}")
    for child in module.modules():
        _kept.pop(child, None)
        packed = vars(child).get("_packed")  # of a frozen convolution
        if isinstance(packed, dict):
            packed.clear()


def folded(input: Tensor, conv: Conv2d, bn: nn.BatchNorm2d) -> Folded | None:
    """Weight and bias of the one convolution that does both; None where the two must run, or are the faster so."""
    if bn.training:
        if not torch.compiler.is_compiling():
            _kept.pop(conv, None)  # of no use any more, and as large as the weight
        return None
    tensors = _tensors(conv, bn)
    if tensors[4] is None or tensors[5] is None or bn.num_features != conv.out_channels:
        return None
    if not are_constants(input, *tensors):
        return None
    if not is_transformed():
        kept = _kept.get(conv)
        if kept is not None and kept.is_of(tensors, bn.eps):
            return kept.folded
        if all(tensor is None or _may_be_kept(tensor) for tensor in tensors):
            versions = _versions(tensors)
            assert versions is not None
            folded = Folded(*_fold(*tensors, bn.eps), packed={})
            _kept[conv] = _Kept(bn.eps, versions, _fingerprint(*tensors), folded)
            return folded
    # Folded at each call, it must cost less than the BatchNorm does.
    pixels = input.numel() // max(input.shape[1], 1) // (conv.stride[0] * conv.stride[1])
    if conv.weight.numel() > pixels * conv.out_channels:
        return None
    return Folded(*_fold(*tensors, bn.eps), packed=None)


def unfolded(input: Tensor, conv: Conv2d) -> Folded | None:
    """Weight and bias of a convolution that no BatchNorm follows; None where they are no constants, either."""
    weight, bias = conv.weight, conv.bias
    return Folded(weight, bias, packed=None) if are_constants(input, weight, bias) else None


def fold(conv: Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does both in evaluation, as new tensors."""
    return _fold(*_tensors(conv, bn), bn.eps)


def _tensors(conv: Conv2d, bn: nn.BatchNorm2d) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Weight, bias, scale, shift, mean and variance."""
    own, norm, statistics = conv._parameters, bn._parameters, bn._buffers
    try:  # Where they are: nn.Module.__getattr__ would be a third of the way to the kernel.
        return (
            own["weight"],
            own["bias"],
            norm["weight"],
            norm["bias"],
            statistics["running_mean"],
            statistics["running_var"],
        )
    except KeyError:  # Some programs put a plain attribute in a parameter's place.
        return conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var


def _versions(tensors: tuple[Tensor | None, ...]) -> list[int | None] | None:
    """None of inference tensors, which have no version: they are never kept, and must not seem to be what was."""
    try:
        return [None if tensor is None else tensor._version for tensor in tensors]
    except RuntimeError:
        return None


def are_constants(input: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether nobody wants to know by way of what the parameters act."""
    # In 16 bits the shift would be rounded before it is added, and errors are half as large again.
    device = "cpu" if input.is_cpu else input.device.type
    if weight.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(device):
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, *others)):
        return False
    # Compiled graphs must not branch on sizes, and inductor fuses the BatchNorm itself.
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or input.dim() != 4)


def is_transformed() -> bool:
    """Whether something looks at operations, or at tangents, which what is kept would hide from it."""
    return (
        library.load_error is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def is_plain_inference(input: Tensor) -> bool:
    """Whether nobody can want to know how the input acts, whatever the other operands are."""
    return (
        type(input) is Tensor
        and input.is_cpu
        and input.layout is torch.strided
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
        and not is_transformed()
    )


def _may_be_kept(tensor: Tensor) -> bool:
    """Not what has no version (inference tensors), nor what another process may write, nor what a kernel would have to
    be waited for to be looked at."""
    dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return (
        dense
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_cpu
        and tensor.dtype in (torch.float32, torch.float64)
        and not (tensor.is_inference() or tensor.is_shared())
    )


@torch.no_grad()
def _fold(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    factor = torch.rsqrt(var + eps)
    if scale is not None:
        factor = factor * scale
    moved = -mean if bias is None else bias - mean
    result = moved * factor if shift is None else torch.addcmul(shift, moved, factor)
    return weight * factor[:, None, None, None], result
