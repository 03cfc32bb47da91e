"""FlopCounterMode counts for ours what it counts for torch's layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import cnnfast
from cnnfast import models


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


LAYERS = {
    "conv2d": lambda: nn.Sequential(nn.Conv2d(6, 8, (3, 2), stride=2, padding=(1, 0))),
    "groups": lambda: nn.Sequential(nn.Conv2d(6, 8, 3, dilation=2, groups=2)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, stride=2)),
    "relu": lambda: nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()),
    "pooled": lambda: nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    "folded": lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 200, 1)).eval(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_as_many_as_torchs(name: str) -> None:
    model = LAYERS[name]()
    ours, x = cnnfast.convert(model), torch.randn(2, 6, 11, 12)

    def backward(model: nn.Module, x: Tensor) -> None:
        model(x).sum().backward()

    def infer(model: nn.Module) -> None:
        with torch.no_grad():
            model(x)

    assert flops(lambda: infer(ours)) == flops(lambda: infer(model)) > 0
    if name == "groups":  # torch counts the products of all groups for the weight's gradient
        return
    for leaf in (x.clone().requires_grad_(), x):
        assert flops(lambda leaf=leaf: backward(ours, leaf)) == flops(lambda leaf=leaf: backward(model, leaf)) > 0


def test_one_image_and_frozen_networks() -> None:
    model = LAYERS["folded"]()
    expected = flops(lambda: model(torch.randn(1, 6, 11, 12)))
    with torch.no_grad():
        assert flops(lambda: cnnfast.freeze(model)(torch.randn(1, 6, 11, 12))) == expected
        assert flops(lambda: cnnfast.convert(LAYERS["conv2d"]())(torch.randn(6, 11, 12))) > 0
    images = torch.randn(3, 1, 28, 28)
    assert flops(lambda: models.LectureCNN()(images)) == flops(lambda: models.PlainLectureCNN()(images))
