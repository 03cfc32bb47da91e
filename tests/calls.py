"""How the correctness tests call an op: by name, forward and backward, on the device under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import cnnfast.functional
from cnnfast.testing import OPS


def ours(op: str, *tensors: Tensor | None, **arguments: Any) -> Tensor:
    """cnnfast's op."""
    return getattr(cnnfast.functional, op)(*tensors, **arguments)


def theirs(op: str, *tensors: Tensor | None, **arguments: Any) -> Tensor:
    """The same from torch.nn.functional, in the tensors' dtype."""
    spec = OPS[op]
    linear, selection = spec.split(arguments)
    return spec.selection(spec.linear(*tensors, **linear), **selection)


def leaves_of(
    tensors: Sequence[Tensor], device: torch.device | str = "cpu", wanted: Sequence[bool] | None = None
) -> list[Tensor]:
    """Leaves of the same values and strides, which want gradients where `wanted` says so (default: all)."""
    wanted = wanted or [True] * len(tensors)
    return [t.detach().to(device).requires_grad_(w) for t, w in zip(tensors, wanted)]


def forward_backward(
    op: str,
    tensors: Sequence[Tensor],
    arguments: Mapping[str, Any],
    grad_output: Tensor | None,
    device: torch.device | str = "cpu",
    wanted: Sequence[bool] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Output and the wanted gradients of cnnfast's op."""
    leaves = leaves_of(tensors, device, wanted)
    output = ours(op, *leaves, **arguments)
    if grad_output is None:
        return output.detach(), []
    inputs = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(output, inputs, grad_output.to(device))
    return output.detach(), list(gradients)
