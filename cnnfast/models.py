"""The lecture's network: the yardstick of this package, with cnnfast's layers and in plain torch."""

from __future__ import annotations

import torch
from torch import nn

from .nn import ConvReLUMaxPool2d


class _SkipIdentity(nn.Sequential):
    """nn.Sequential that does not call its Identity entries, which are there to keep the others' numbers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for module in self._modules.values():
            if type(module) is not nn.Identity:
                input = module(input)
        return input


class _Network(nn.Module):
    """What both networks share; `cnn_layers` has two stages of three entries each."""

    def __init__(self, cnn_layers: nn.Sequential, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.cnn_layers = cnn_layers
        self.fc_layers = nn.Sequential(
            nn.Linear(24 * 7 * 7, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, num_classes)
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.fc_layers(self.cnn_layers(input).flatten(1))


class LectureCNN(_Network):
    """The lecture's network with each Conv + ReLU + MaxPool stage fused into one op.

    Shapes: input [N, in_channels, 28, 28], result [N, num_classes] (logits, no softmax).

    The keys of its state_dict are those of `PlainLectureCNN`, and the same seed gives the same weights, so either
    loads what the other saved. `cnn_layers[0]` and `[3]` are the fused stages, `[1]`, `[2]`, `[4]` and `[5]` are
    `nn.Identity` and are not called (nor are hooks on them).

    Args:
        in_channels: 1 for grey images (default), 3 for colour.
        num_classes: length of a row of the result, default 10.
        dropout: share of the hidden layer that training makes zero, default 0.2.

    Example:
        >>> model = LectureCNN()
        >>> model(torch.zeros(64, 1, 28, 28)).shape
        torch.Size([64, 10])
        >>> model.cnn_layers(torch.zeros(64, 1, 28, 28)).shape
        torch.Size([64, 24, 7, 7])
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, dropout: float = 0.2) -> None:
        cnn_layers = _SkipIdentity(
            ConvReLUMaxPool2d(in_channels, 12, 3, padding=1, pool_kernel_size=2),
            nn.Identity(),
            nn.Identity(),
            ConvReLUMaxPool2d(12, 24, 3, padding=1, pool_kernel_size=2),
            nn.Identity(),
            nn.Identity(),
        )
        super().__init__(cnn_layers, num_classes, dropout)


class PlainLectureCNN(_Network):
    """The same network in torch's own layers: what `LectureCNN` is compared with. Same arguments, shapes and keys."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10, dropout: float = 0.2) -> None:
        cnn_layers = nn.Sequential(
            nn.Conv2d(in_channels, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        super().__init__(cnn_layers, num_classes, dropout)
