"""The lecture's worked numbers, computed by the library: what its slides show is what the ops return."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import cnnfast
from cnnfast import functional

# The lecture gives the kernel and the first result, 114. Its picture is not in this repository: these are the pixels
# that are usually printed with that kernel, chosen because they give it: 5 * 60 - 113 - 73 = 114.
PIXELS = [
    [60, 113, 56, 139, 85],
    [73, 121, 54, 84, 128],
    [131, 99, 70, 129, 127],
    [80, 57, 115, 69, 134],
    [104, 126, 123, 95, 130],
]
SHARPEN = [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]


def by_hand(stride: int, padding: int) -> list[list[int]]:
    """The sharpened image as a student computes it: a window, nine products, their sum; whole numbers throughout."""
    size = len(PIXELS) + 2 * padding

    def pixel(row: int, column: int) -> int:
        row, column = row - padding, column - padding
        return PIXELS[row][column] if 0 <= row < len(PIXELS) and 0 <= column < len(PIXELS) else 0

    def window(top: int, left: int) -> int:
        return sum(SHARPEN[r][s] * pixel(top + r, left + s) for r in range(3) for s in range(3))

    corners = range(0, size - 2, stride)
    return [[window(top, left) for left in corners] for top in corners]


@pytest.fixture
def pixels(device: torch.device) -> torch.Tensor:
    return torch.tensor(PIXELS, device=device).float().view(1, 1, 5, 5)


@pytest.fixture
def kernel(device: torch.device) -> torch.Tensor:
    return torch.tensor(SHARPEN, device=device).float().view(1, 1, 3, 3)


def test_zero_padding_and_the_sharpening_kernel_give_114_first(pixels: torch.Tensor, kernel: torch.Tensor):
    sharpened = functional.conv2d(pixels, kernel, padding=1)
    assert sharpened.shape == pixels.shape
    assert sharpened[0, 0].tolist()[0] == [114, 328, -26, 470, 158]
    assert sharpened[0, 0].tolist() == by_hand(stride=1, padding=1)


def test_without_padding_a_border_of_one_pixel_is_lost(pixels: torch.Tensor, kernel: torch.Tensor):
    sharpened = functional.conv2d(pixels, kernel)
    assert sharpened.shape == (1, 1, 3, 3)
    assert torch.equal(sharpened, functional.conv2d(pixels, kernel, padding=1)[:, :, 1:4, 1:4])


def test_5x5_with_3x3_and_stride_2_gives_2x2(pixels: torch.Tensor, kernel: torch.Tensor):
    strided = functional.conv2d(pixels, kernel, stride=2)
    assert strided.shape == (1, 1, 2, 2)
    assert strided[0, 0].tolist() == by_hand(stride=2, padding=0)


@pytest.mark.parametrize("padding, stride", [(0, 1), (1, 1), (0, 2), (1, 2), (2, 3)])
def test_the_size_is_that_of_the_formula(pixels: torch.Tensor, kernel: torch.Tensor, padding: int, stride: int):
    size = (5 + 2 * padding - 3) // stride + 1
    result = functional.conv2d(pixels, kernel, stride=stride, padding=padding)
    assert result.shape == (1, 1, size, size)
    assert result[0, 0].tolist() == by_hand(stride, padding)


def test_the_layer_computes_what_the_function_does(pixels: torch.Tensor, kernel: torch.Tensor):
    layer = cnnfast.Conv2d(1, 1, kernel_size=3, padding=1, bias=False, device=pixels.device)
    with torch.no_grad():
        layer.weight.copy_(kernel)
    assert layer(pixels)[0, 0, 0, 0].item() == 114


@pytest.mark.parametrize(
    "pool, expected",
    [
        (functional.max_pool2d, [[121, 139], [131, 129]]),  # the largest of 60, 113, 73, 121 is 121, ...
        (functional.avg_pool2d, [[91.75, 83.25], [91.75, 95.75]]),  # (60 + 113 + 73 + 121) / 4 = 91.75, ...
    ],
)
def test_pooling_of_2x2_windows(pixels: torch.Tensor, pool: Callable[..., torch.Tensor], expected: list[list[float]]):
    assert pool(pixels, 2)[0, 0].tolist() == expected


def test_relu_makes_the_negative_sums_zero(pixels: torch.Tensor, kernel: torch.Tensor):
    sharpened = functional.conv2d(pixels, kernel, padding=1)
    assert functional.conv2d_relu(pixels, kernel, padding=1)[0, 0, 0].tolist() == [114, 328, 0, 470, 158]
    assert torch.equal(functional.relu(sharpened), sharpened.clamp(min=0))


def test_the_fused_op_is_the_three_steps(pixels: torch.Tensor, kernel: torch.Tensor):
    steps = functional.max_pool2d(functional.relu(functional.conv2d(pixels, kernel, padding=1)), 2)
    assert torch.equal(functional.conv2d_relu_max_pool2d(pixels, kernel, padding=1), steps)


def test_a_colour_image_has_three_channels_and_one_sum():
    colour = torch.stack([torch.tensor(PIXELS).float() + 10 * c for c in range(3)]).unsqueeze(0)
    kernel = torch.tensor(SHARPEN).float().expand(1, 3, 3, 3)
    channels = [functional.conv2d(colour[:, c : c + 1], kernel[:, c : c + 1], padding=1) for c in range(3)]
    assert torch.equal(functional.conv2d(colour, kernel, padding=1), sum(channels))


def test_the_network_shrinks_the_image_and_widens_the_channels():
    shapes, x = [], torch.zeros(1, 1, 28, 28)
    for layer in cnnfast.models.PlainLectureCNN().cnn_layers:
        x = layer(x)
        shapes.append(list(x.shape[1:]))
    assert shapes == [[12, 28, 28]] * 2 + [[12, 14, 14]] + [[24, 14, 14]] * 2 + [[24, 7, 7]]
    assert x.flatten(1).shape == (1, 1176)
