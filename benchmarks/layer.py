"""A layer as a row of a suite's table, and what is computed for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import cnnfast
from cnnfast import normalization

from .work import BACKWARD, FORWARD, Work

__all__ = ["Layer", "conv", "work_of"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A labelled call: the module's arguments and the input's shape N C H W; ``quick`` ones are in the quick run."""

    label: str
    op: str
    input: tuple[int, int, int, int]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quick: bool = False

    @property
    def in_training(self) -> bool:
        """Whether it is our kernels' only there, and on the CPU."""
        return self.op == "batch_norm_relu"

    @property
    def modes(self) -> tuple[str, ...]:
        return (BACKWARD,) if self.in_training else (FORWARD, BACKWARD)


class _BatchNormReLU(nn.BatchNorm2d):
    """What convert makes of the two, behind a convolution in training."""

    def forward(self, input: Tensor) -> Tensor:
        return normalization.batch_norm(input, self, "relu")


# Ours and torch's for each op, both called with the layer's arguments.
MODULES: Mapping[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "conv2d": (cnnfast.Conv2d, nn.Conv2d),
    "conv2d_relu": (cnnfast.ConvReLU2d, lambda **arguments: nn.Sequential(nn.Conv2d(**arguments), nn.ReLU())),
    "conv_transpose2d": (cnnfast.ConvTranspose2d, nn.ConvTranspose2d),
    "relu": (cnnfast.ReLU, nn.ReLU),
    "max_pool2d": (cnnfast.MaxPool2d, nn.MaxPool2d),
    "avg_pool2d": (cnnfast.AvgPool2d, nn.AvgPool2d),
    "batch_norm_relu": (
        _BatchNormReLU,
        lambda num_features: nn.Sequential(nn.BatchNorm2d(num_features), nn.ReLU(inplace=True)),
    ),
}


def conv(label: str, op: str, input: tuple[int, int, int, int], filters: int, kernel: Any, **others: Any) -> Layer:
    quick = others.pop("quick", False)
    arguments = {"in_channels": input[1], "out_channels": filters, "kernel_size": kernel, **others}
    return Layer(label, op, input, arguments, quick)


def work_of(layer: Layer, mode: str, input_gradient: bool = True) -> Work:
    """The layer with random weights and input; the gradient of its input is wanted, as inside a network."""
    torch.manual_seed(0)
    make_ours, make_plain = MODULES[layer.op]
    ours, plain = make_ours(**layer.arguments), make_plain(**layer.arguments)
    with torch.no_grad():
        for target, source in zip(plain.parameters(), ours.parameters(), strict=True):
            target.copy_(source)
    return Work(ours, plain, torch.randn(layer.input), mode, input_gradient)
