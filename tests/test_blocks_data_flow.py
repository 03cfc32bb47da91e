"""Which sums run with their convolution: data flow, shapes and layouts decide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from blocks_testing import FORMATS, block_input, groups, models
from torch import Tensor, nn


class Writing(nn.Module):
    """``write(self, conv(x), x)`` is the whole forward, but for the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)


class OutFirst(Writing):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)) + x, inplace=True)


class OutLast(Writing):
    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(torch.add(x, self.bn(self.conv(x))))


class Method(Writing):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).add_(x).relu_()


class PlainMethod(Writing):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x.add(self.bn(self.conv(x))))


class UsedAgain(Writing):
    """The residual is needed once more, and must not have been written to."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x * 2)
        out = self.bn(self.conv(y))
        out += y
        return out * y


class IntoIdentity(Writing):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        kept = y.view(y.shape)
        y += self.bn(self.conv(x))
        return y + kept


class Twice(Writing):
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        return out + out


class ResultUsedTwice(Writing):
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        return (out + x) * out


class Scaled(Writing):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.bn(self.conv(x)), x, alpha=2)


class Size(Writing):
    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        return n + self.bn(self.conv(x))


class Flat(Writing):
    """The sum is laid out as its first operand."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.bn(self.conv(x))
        return y.view(y.size(0), -1)


class Number(Writing):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + 1.5


class Between(Writing):
    """What the convolution has read is changed before the sum."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        out = self.bn(self.conv(y))
        y += 1
        return out + y


class Broadcast(Writing):
    def forward(self, x: Tensor) -> Tensor:
        residual = x.mean((2, 3), keepdim=True)
        return self.bn(self.conv(x)) + residual


class Wider(Writing):
    """The sum is larger than the convolution's result."""

    def forward(self, x: Tensor) -> Tensor:
        residual = torch.stack([x, x])
        return self.bn(self.conv(x)) + residual


class OtherType(Writing):
    def forward(self, x: Tensor) -> Tensor:
        residual = x.double()
        return F.relu(self.bn(self.conv(x)) + residual)


class Late(Writing):
    """The residual is computed by what might change something."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + x.sin()


class Turned(Writing):
    def forward(self, x: Tensor) -> Tensor:
        residual = x.flip(3).transpose(2, 3).contiguous().transpose(2, 3)
        return self.bn(self.conv(x)) + residual


@pytest.mark.parametrize(
    ("cls", "fused"),
    [
        (OutFirst, ["conv + bn + add + silu"]),
        (OutLast, ["conv + bn + add + hardswish"]),
        (Method, ["conv + bn + add + relu_"]),
        (PlainMethod, ["conv + bn + add + relu6"]),
        (UsedAgain, ["conv + bn + add"]),
        (IntoIdentity, ["conv + bn"]),
        (Twice, ["conv + bn"]),
        (ResultUsedTwice, ["conv + bn"]),
        (Scaled, ["conv + bn"]),
        (Number, ["conv + bn"]),
        (Size, ["conv + bn + add"]),
        (Flat, ["conv + bn + add"]),
        (Between, ["conv + bn"]),
        (Broadcast, ["conv + bn + add"]),
        (Wider, ["conv + bn + add"]),
        (OtherType, ["conv + bn + add + relu"]),
        (Late, ["conv + bn"]),
        (Turned, ["conv + bn + add"]),
    ],
)
def test_data_flow_decides(cls: type[nn.Module], fused: list[str]) -> None:
    ours, theirs = models(cls)
    assert groups(ours) == fused
    x = block_input()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [Flat, OutLast, PlainMethod, OutFirst, Method])
def test_sums_are_laid_out_as_the_models(cls: type[nn.Module]) -> None:
    """The weights in one layout, the images in another."""
    ours, theirs = models(cls)
    turned = block_input().transpose(2, 3).contiguous().transpose(2, 3)
    for layout in FORMATS.values():
        ours, theirs = ours.to(memory_format=layout), theirs.to(memory_format=layout)
        for x in (block_input("NCHW"), block_input("channels_last"), turned):
            with torch.no_grad():
                try:
                    expected = theirs(x.clone(memory_format=torch.preserve_format))
                except RuntimeError as error:  # no view of it
                    with pytest.raises(RuntimeError, match=str(error).partition(" (")[0]):
                        ours(x.clone(memory_format=torch.preserve_format))
                    continue
                actual = ours(x.clone(memory_format=torch.preserve_format))
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
            assert actual.stride() == expected.stride()


def test_a_constant_convolution_and_a_number_with_gradients_enabled() -> None:
    ours, theirs = (model.requires_grad_(False) for model in models(Size))
    torch.testing.assert_close(ours(block_input()), theirs(block_input()), rtol=1e-4, atol=1e-4)
