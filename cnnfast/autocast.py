"""Autocast as torch applies it to convolutions: to the lower precision of the device. Pooling and ReLU take their
input's dtype, as torch's do on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def lower_precision(device_type: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """``tensors`` in the autocast dtype of the device type; float64 and absent ones as they are.

    To be called only where autocast is enabled. Casting is differentiable: gradients come back in each tensor's dtype.
    """
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        tensor.to(dtype)
        if tensor is not None and tensor.is_floating_point() and tensor.dtype is not torch.float64
        else tensor
        for tensor in tensors
    )
