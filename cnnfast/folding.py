"""BatchNorm folded into the convolution before it, and kept folded for as long as neither changes.

What is kept belongs to one convolution and vanishes with it; no copy, pickle or state_dict knows of it. It is used
while every tensor that it was made of is the same memory, at the same version and with the same fingerprint: the latter
since writes through ``tensor.data`` leave the version as it is. A fingerprint looks at some 64 elements of each tensor;
after a write of single elements through ``.data``, call :func:`cnnfast.repack`.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import library
from .nn import Conv2d

__all__ = ["foldable", "folded", "repack"]

_fingerprint = library.op("fingerprint")


class _Folded(NamedTuple):
    key: tuple[Any, ...]
    weight: Tensor
    bias: Tensor


_kept: weakref.WeakKeyDictionary[nn.Module, _Folded] = weakref.WeakKeyDictionary()


def repack(module: nn.Module) -> None:
    """Forgets what was made of the parameters of ``module`` and its children; it is made anew at the next call.

    Needed only after single elements were written through ``parameter.data``, which nothing else tells of.

    Example:
        >>> model = cnnfast.convert(model).eval()
        >>> model.conv1.weight.data[0, 0, 0, 0] = 0.0
        >>> cnnfast.repack(model)
    """
    for child in module.modules():
        _kept.pop(child, None)


def foldable(input: Tensor, conv: Any, bn: Any) -> bool:
    """Whether BatchNorm is a constant scale and shift now, and folding it costs less than applying it."""
    if bn.training or bn.running_mean is None or bn.num_features != conv.out_channels:
        return False
    # In 16 bits the shift would be rounded before it is added, and errors are half as large again.
    if conv.weight.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(input.device.type):
        return False
    tensors = (input, conv.weight, conv.bias, bn.weight, bn.bias)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return False
    # Compiled graphs must not branch on sizes, and inductor fuses the BatchNorm itself.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or input.dim() != 4:
        return False
    if input.is_cpu:  # where it is kept
        return True
    pixels = input.numel() // max(input.shape[1], 1) // (conv.stride[0] * conv.stride[1])
    return conv.weight.numel() <= pixels * conv.out_channels


def folded(conv: Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does both."""
    assert bn.running_mean is not None and bn.running_var is not None
    tensors = (conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var)
    if _is_transformed() or not all(tensor is None or _may_be_kept(tensor) for tensor in tensors):
        return _fold(*tensors, bn.eps)
    states = tuple(None if t is None else (t.data_ptr(), t._version, t.dtype, t.stride()) for t in tensors)
    key = (bn.eps, _fingerprint(*tensors), states)
    kept = _kept.get(conv)
    if kept is None or kept.key != key:
        kept = _kept[conv] = _Folded(key, *_fold(*tensors, bn.eps))
    return kept.weight, kept.bias


def _is_transformed() -> bool:
    """Whether something looks at operations, or at tangents, which what is kept would hide from it."""
    return (
        library.load_error is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _may_be_kept(tensor: Tensor) -> bool:
    """Not what has no version (inference tensors), nor what another process may write, nor what a kernel would have to
    be waited for to be looked at."""
    dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return (
        dense
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_cpu
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
