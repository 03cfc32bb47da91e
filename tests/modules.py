"""The modules on small inputs, for tests of what torch does with any module."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import cnnfast
from cnnfast.models import LectureCNN, PlainLectureCNN


class Twin(NamedTuple):
    """A module of ours, the same in torch's, and the shape of one of its images."""

    name: str
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    image: tuple[int, ...]

    def modules(self) -> tuple[nn.Module, nn.Module]:
        """Both in eval mode, of the same weights."""
        torch.manual_seed(0)
        ours, theirs = self.ours().eval(), self.theirs().eval()
        theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())))
        return ours, theirs

    def input(self, batch: int, seed: int = 1) -> Tensor:
        return torch.randn(batch, *self.image, generator=torch.Generator().manual_seed(seed))


_IMAGE = (2, 8, 7)

TWINS = [
    Twin("Conv2d", lambda: cnnfast.Conv2d(2, 4, 3, padding=1, stride=2), lambda: nn.Conv2d(2, 4, 3, 2, 1), _IMAGE),
    Twin("Conv2d_same", lambda: cnnfast.Conv2d(2, 4, (2, 3), padding="same", groups=2),
         lambda: nn.Conv2d(2, 4, (2, 3), padding="same", groups=2), _IMAGE),
    Twin("ConvTranspose2d", lambda: cnnfast.ConvTranspose2d(2, 4, 3, 2, 1, 1),
         lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1), _IMAGE),
    Twin("ReLU", cnnfast.ReLU, nn.ReLU, _IMAGE),
    Twin("MaxPool2d", lambda: cnnfast.MaxPool2d(3, 2, 1, ceil_mode=True), lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
         _IMAGE),
    Twin("AvgPool2d", lambda: cnnfast.AvgPool2d(2), lambda: nn.AvgPool2d(2), _IMAGE),
    Twin("ConvReLU2d", lambda: cnnfast.ConvReLU2d(2, 4, 3), lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()),
         _IMAGE),
    Twin("ConvReLUMaxPool2d", lambda: cnnfast.ConvReLUMaxPool2d(2, 4, 3, padding=1),
         lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)), _IMAGE),
    Twin("LectureCNN", LectureCNN, PlainLectureCNN, (1, 28, 28)),
]  # fmt: skip

every_module = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)


def results(module: nn.Module, input: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Output of ``run`` (default: the module) and the gradients of its input and of the module's parameters."""
    leaf = input.detach().clone().requires_grad_()
    output = (module if run is None else run)(leaf)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), [leaf, *module.parameters()])]
