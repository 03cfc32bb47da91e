"""What the tests of fused blocks share: models, their conversions, and how the two are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import cnnfast
from cnnfast import fusion

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class Basic(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, C: int = 8, K: int = 8, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, K, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(K)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(K, K, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(K)
        self.downsample = None
        if stride != 1 or C != K:
            self.downsample = nn.Sequential(nn.Conv2d(C, K, 1, stride, bias=False), nn.BatchNorm2d(K))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class Shrinking(Basic):
    def __init__(self) -> None:
        super().__init__(8, 12, 2)


class Inverted(nn.Module):
    """torchvision's InvertedResidual: the sum is in another forward than the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def shuffled(model: nn.Module) -> nn.Module:
    """With statistics that BatchNorm does not start from."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model


def groups(model: nn.Module) -> list[str]:
    return [str(group) for group in fusion.groups(model)] if fusion.is_fused(model) else []


def models(cls: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The converted model, and the model, in evaluation."""
    torch.manual_seed(0)
    model = shuffled(cls()).eval()
    return cnnfast.convert(model), model


def block_input(layout: str = "NCHW") -> Tensor:
    x = torch.randn(2, 8, 14, 13, generator=torch.Generator().manual_seed(1))
    return x.to(memory_format=FORMATS[layout])


def ops(model: nn.Module, x: Tensor) -> list[str]:
    with torch.inference_mode(), torch.profiler.profile() as profile:
        model(x)
    return [event.name for event in profile.events() or []]


def check(ours: nn.Module, theirs: nn.Module, x: Tensor | None = None) -> None:
    x = block_input() if x is None else x
    with torch.inference_mode():
        actual, expected = ours(x.clone()), theirs(x.clone())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert actual.stride() == expected.stride()
