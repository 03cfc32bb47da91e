"""3x3 convolutions by Winograd F(4x4, 3x3): within the error that its transforms can make, and chosen where expected.

The bound is Higham's for each of the algorithm's three products in turn: the algorithm itself, in float64, on absolute
values and with the matrices' absolute values, times gamma(n, u), n the roundings on the way to one element.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast.testing import LAYOUTS, Bounded, assert_within

ops = torch.ops.cnnfast
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
OUTPUTS, TAPS, SIZE = 4, 3, 6
# Of the transforms of a tile, a kernel, a gradient and the result, 3 terms each, both ways; of G's coefficients; of a
# product; of a bias.
ROUNDINGS = 4 * 2 * 3 + 2 + 1 + 1


class Conv(NamedTuple):
    label: str
    input: tuple[int, ...]
    filters: int
    padding: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    def __str__(self) -> str:
        return self.label


CONVS = [
    Conv("tails", (6, 27, 19, 15), 35),
    Conv("no padding", (2, 24, 13, 30), 40, (0, 0)),
    Conv("much padding", (4, 40, 14, 14), 36, (2, 2), bias=False),
    Conv("lopsided padding", (4, 32, 10, 30), 48, (0, 2)),
    Conv("groups", (4, 96, 12, 12), 64, groups=2),
    Conv("two depths", (3, 300, 12, 12), 20),
    Conv("parts of a few tiles", (2, 64, 16, 16), 272),
    Conv("slices of many tiles", (40, 32, 12, 12), 48),
    Conv("strips of a wide row", (2, 24, 16, 270), 40),
    Conv("no batch", (48, 24, 28), 40),
]


@pytest.fixture(autouse=True)
def restored(device: torch.device) -> Iterator[None]:
    if device.type != "cpu":
        pytest.skip("winograd is the CPU's")
    threads, before = torch.get_num_threads(), ops.set_winograd(True)
    yield
    torch.set_num_threads(threads)
    ops.set_winograd(before)


def _tensors(conv: Conv, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    channels = conv.input[-3]
    input = torch.randn(conv.input, generator=generator)
    weight = torch.randn(conv.filters, channels // conv.groups, TAPS, TAPS, generator=generator)
    bias = torch.randn(conv.filters, generator=generator) if conv.bias else None
    shape = F.conv2d(input.to("meta"), weight.to("meta"), None, 1, conv.padding, 1, conv.groups).shape
    return input, weight, bias, torch.randn(shape, generator=generator)


def _run(conv: Conv, input: Tensor, weight: Tensor, bias: Tensor | None, grad_output: Tensor) -> list[Tensor]:
    """Output, with ReLU as well, and the gradients of input and weight."""
    h, w = conv.padding
    options = [1, 1, h, h, w, w, 1, 1, conv.groups, False]
    outputs = [ops.conv2d_forward(input, weight, bias, options, activation) for activation in (0, 1)]
    return outputs + list(ops.conv2d_backward(grad_output, input, weight, options, [True, True, False])[:2])


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Absolute values of A^T, G and B^T from the points, each polynomial multiplied out."""
    a, g, b = torch.zeros(OUTPUTS, SIZE), torch.zeros(SIZE, TAPS), torch.zeros(SIZE, SIZE)
    for j in range(SIZE):
        others = [p for i, p in enumerate(POINTS) if i != j]
        coefficients = [1.0]
        for root in others:
            coefficients = [
                (coefficients[i - 1] if i else 0.0) - root * (coefficients[i] if i < len(coefficients) else 0.0)
                for i in range(len(coefficients) + 1)
            ]
        b[j, : len(coefficients)] = torch.tensor(coefficients)
        if j < len(POINTS):
            value = sum(c * POINTS[j] ** i for i, c in enumerate(coefficients))
            a[:, j] = torch.tensor([POINTS[j] ** i for i in range(OUTPUTS)])
            g[j] = torch.tensor([POINTS[j] ** i / value for i in range(TAPS)])
    a[-1, -1] = g[-1, -1] = 1.0
    return a.double().abs(), g.double().abs(), b.double().abs()


A, G, B = _matrices()


def _tiles(x: Tensor, padding: tuple[int, int], outputs: tuple[int, int], size: int) -> Tensor:
    """[N, C, size, size, tiles] of absolute values."""
    rows, columns = (-(-o // OUTPUTS) for o in outputs)
    height, width = (rows - 1) * OUTPUTS + size, (columns - 1) * OUTPUTS + size
    top, left = padding
    x = F.pad(x.double().abs(), (left, max(width - x.shape[-1] - left, 0), top, max(height - x.shape[-2] - top, 0)))
    x = x[..., :height, :width]
    return F.unfold(x, size, stride=OUTPUTS).view(*x.shape[:2], size, size, -1)


def _both(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """matrix x matrix^T on dimensions dim and dim + 1."""
    x = torch.movedim(x, (dim, dim + 1), (-2, -1))
    return torch.movedim(matrix @ x @ matrix.T, (-2, -1), (dim, dim + 1))


def _gamma(n: int) -> float:
    u = torch.finfo(torch.float32).eps / 2
    return n * u / (1 - n * u)


def _forward_bound(x: Tensor, weight: Tensor, padding: tuple[int, int], groups: int) -> Tensor:
    outputs = (x.shape[-2] + 2 * padding[0] - TAPS + 1, x.shape[-1] + 2 * padding[1] - TAPS + 1)
    parts = []
    for images, kernels in zip(x.chunk(groups, 1), weight.chunk(groups)):
        tiles = _both(B, _tiles(images, padding, outputs, SIZE), 2)
        kernels = _both(G, kernels.double().abs(), 2)
        y = _both(A, torch.einsum("ncijt,kcij->nkijt", tiles, kernels), 2)
        rows, columns = (-(-o // OUTPUTS) * OUTPUTS for o in outputs)
        y = F.fold(y.flatten(1, 3), (rows, columns), OUTPUTS, stride=OUTPUTS)
        parts.append(y[..., : outputs[0], : outputs[1]])
    return _gamma(weight.shape[1] + ROUNDINGS) * torch.cat(parts, 1)


def _weight_bound(x: Tensor, grad: Tensor, padding: tuple[int, int], groups: int) -> Tensor:
    outputs = (grad.shape[-2], grad.shape[-1])
    parts = []
    for images, grads in zip(x.chunk(groups, 1), grad.chunk(groups, 1)):
        tiles = _both(B, _tiles(images, padding, outputs, SIZE), 2)
        grads = _both(A.T, _tiles(grads, (0, 0), outputs, OUTPUTS), 2)
        parts.append(_both(G.T, torch.einsum("ncijt,nkijt->kcij", tiles, grads), 2))
    count = tiles.shape[0] * tiles.shape[-1]
    return _gamma(count + ROUNDINGS) * torch.cat(parts)


def _expected(
    conv: Conv, input: Tensor, weight: Tensor, bias: Tensor | None, grad_output: Tensor
) -> dict[str, Bounded]:
    single = input.dim() == 3
    x, grad = (t.unsqueeze(0) if single else t for t in (input, grad_output))
    exact = [t.double().contiguous() for t in (x, weight)]
    output = F.conv2d(*exact, None if bias is None else bias.double(), 1, conv.padding, 1, conv.groups)
    grads = torch.ops.aten.convolution_backward(
        grad.double().contiguous(), *exact, None, [1, 1], conv.padding, [1, 1], False, [0, 0], conv.groups,
        [True, True, False],
    )  # fmt: skip
    bound = _forward_bound(x, weight, conv.padding, conv.groups)
    if bias is not None:
        bound = bound + _gamma(2) * bias.double().abs().view(-1, 1, 1)
    turned = torch.cat([w.transpose(0, 1) for w in weight.flip(2, 3).chunk(conv.groups)])
    back = (TAPS - 1 - conv.padding[0], TAPS - 1 - conv.padding[1])
    values = {
        "output": Bounded(output, bound),
        "output of relu": Bounded(output.relu(), bound),
        "grad_input": Bounded(grads[0], _forward_bound(grad, turned, back, conv.groups)),
        "grad_weight": Bounded(grads[1], _weight_bound(x, grad, conv.padding, conv.groups)),
    }
    if single:
        values = {n: Bounded(*(t if n == "grad_weight" else t.squeeze(0) for t in v)) for n, v in values.items()}
    return values


def _check(conv: Conv, *tensors: Tensor | None) -> None:
    """All results, and that they are Winograd's: its roundings are not those of a direct sum."""
    expected = _expected(conv, *tensors)
    results = _run(conv, *tensors)
    ops.set_winograd(False)
    for (name, bounded), actual, direct in zip(expected.items(), results, _run(conv, *tensors), strict=True):
        assert_within(actual, bounded, f"{name} of {conv}")
        assert not torch.equal(actual, direct), f"{name} of {conv} was summed directly"
    ops.set_winograd(True)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_within_the_bound(conv: Conv, isa: str) -> None:
    _check(conv, *_tensors(conv))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conv", CONVS[:5], ids=str)
def test_layouts(conv: Conv, layout: str) -> None:
    input, weight, bias, grad_output = _tensors(conv, seed=1)
    _check(conv, LAYOUTS[layout](input), LAYOUTS[layout](weight), bias, LAYOUTS[layout](grad_output))


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_bits_of_any_number_of_threads(conv: Conv) -> None:
    tensors = _tensors(conv, seed=2)
    torch.set_num_threads(1)
    expected = _run(conv, *tensors)
    for threads in (2, 3, 8, 2):
        torch.set_num_threads(threads)
        for actual, first in zip(_run(conv, *tensors), expected, strict=True):
            assert torch.equal(actual, first)


def test_is_what_runs_unless_told_otherwise() -> None:
    conv = next(conv for conv in CONVS if conv.label == "slices of many tiles")
    tensors = _tensors(conv, seed=3)
    by_winograd = _run(conv, *tensors)
    assert ops.set_winograd(False)
    directly = _run(conv, *tensors)
    assert not ops.set_winograd(True)
    for a, b in zip(by_winograd, directly, strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(_run(conv, *tensors), by_winograd, strict=True))


IGNORED = "cnnfast: CNNFAST_WINOGRAD must be 0 or 1, but got off; ignored"


def test_relu6() -> None:
    conv = next(conv for conv in CONVS if conv.label == "slices of many tiles")
    input, weight, bias, _ = _tensors(conv, seed=4)
    options = [1, 1, 1, 1, 1, 1, 1, 1, 1, False]
    plain, clipped = (ops.conv2d_forward(input, weight, bias, options, activation) for activation in (0, 2))
    assert torch.equal(clipped, F.relu6(plain))


def test_environment_says_otherwise() -> None:
    program = "import torch, cnnfast; print(torch.ops.cnnfast.set_winograd(True))"
    for value, expected, said in (("0", "False", ""), ("1", "True", ""), ("", "True", ""), ("off", "True", IGNORED)):
        printed = subprocess.run(
            [sys.executable, "-c", program], env={"CNNFAST_WINOGRAD": value}, capture_output=True, text=True, check=True
        )
        assert printed.stdout.strip() == expected
        assert said in printed.stderr


@pytest.mark.parametrize("where", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_not_finite_stays_where_it_belongs(where: str, value: float) -> None:
    """A transform would spread it over its tile, and make NaN of infinities; the results are those of direct sums."""
    conv = CONVS[1]
    input, weight, bias, grad_output = _tensors(conv, seed=4)
    {"input": input, "weight": weight, "grad_output": grad_output}[where][1, 3, 2, 1] = value
    actual = _run(conv, input, weight, bias, grad_output)
    ops.set_winograd(False)
    expected = _run(conv, input, weight, bias, grad_output)
    assert any(not t.isfinite().all() for t in expected) or value == 3e38
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-3, atol=1e-3)


def test_few_tiles_and_few_channels_are_summed_directly() -> None:
    for conv in (Conv("one tile", (1, 64, 4, 4), 64), Conv("few channels", (1, 4, 12, 12), 4)):
        tensors = _tensors(conv)
        results = _run(conv, *tensors)
        ops.set_winograd(False)
        assert all(torch.equal(a, b) for a, b in zip(results, _run(conv, *tensors), strict=True))
        ops.set_winograd(True)


def _pooled(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], groups: int) -> Tensor:
    h, w = padding
    options = [1, 1, h, h, w, w, 1, 1, groups, 2, 2, 2, 2, 0, 0, 1, 1, 0, 0]
    return ops.conv2d_relu_max_pool2d_forward(x, weight, bias, options, False)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_pools_its_tiles(conv: Conv, layout: str, isa: str) -> None:
    """The bits of the convolution and then the pooling, and none of the direct sum's."""
    x, weight, bias, grad_output = _tensors(conv, seed=3)
    x, weight = LAYOUTS[layout](x), LAYOUTS[layout](weight)
    exact, bound = _expected(conv, x, weight, bias, grad_output)["output of relu"]
    h, w = conv.padding
    conv2d = ops.conv2d_forward(x, weight, bias, [1, 1, h, h, w, w, 1, 1, conv.groups, False], 1)
    actual = _pooled(x, weight, bias, conv.padding, conv.groups)
    assert_within(actual, Bounded(F.max_pool2d(exact, 2), F.max_pool2d(bound, 2)), f"pooled output of {conv}")
    if conv.input[-3] >= 32:
        assert torch.equal(actual, F.max_pool2d(conv2d, 2))  # else F(2x2, 3x3) may have taken it
    ops.set_winograd(False)
    assert not torch.equal(actual, _pooled(x, weight, bias, conv.padding, conv.groups))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pools_what_is_not_finite_as_torch_does(value: float) -> None:
    x, weight, bias, _ = _tensors(Conv("many channels", (2, 96, 14, 15), 128), seed=4)
    x[1, 7, 5, 6] = value
    expected = F.max_pool2d(F.conv2d(x, weight, bias, padding=1).relu(), 2)
    actual = _pooled(x, weight, bias, (1, 1), 1)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3, equal_nan=True)


def test_fused_inference_obeys_the_switch() -> None:
    """Winograd F(2x2, 3x3) with the pool in its output."""
    generator = torch.Generator().manual_seed(6)
    input, weight = torch.randn(2, 12, 14, 14, generator=generator), torch.randn(24, 12, 3, 3, generator=generator)
    options = [*(1, 1), *(1, 1, 1, 1), *(1, 1), 1, *(2, 2), *(2, 2), *(0, 0), *(1, 1), False, False]

    def run(return_code: bool) -> Tensor:
        return ops.conv2d_relu_max_pool2d_forward(input, weight, None, options, return_code)[0]

    by_winograd, directly = run(False), run(True)
    assert not torch.equal(by_winograd, directly)
    ops.set_winograd(False)
    assert torch.equal(run(False), directly)
