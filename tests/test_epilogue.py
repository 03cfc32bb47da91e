"""What a convolution's sums go through on the CPU: a residual, and activations, of every algorithm and layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cnnfast  # noqa: F401  # registers the ops

ops = torch.ops.cnnfast

ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [lambda x: x, F.relu, F.relu6, F.silu, F.hardswish]
SILU, HARDSWISH = 3, 4

# C, K, kernel, stride, padding, groups, H, W
LAYERS = {
    "winograd": (40, 37, 3, 1, 1, 1, 30, 29),
    "winograd, grouped": (64, 80, 3, 1, 1, 2, 17, 22),
    "direct over columns": (8, 8, 3, 1, 1, 1, 19, 50),
    "direct over channels": (3, 24, 3, 2, 1, 1, 33, 40),
    "direct over channels, 7x7": (3, 17, 7, 2, 3, 1, 31, 29),
    "depthwise": (20, 20, 3, 1, 1, 20, 14, 13),
    "depthwise, strided": (32, 32, 5, 2, 2, 32, 14, 13),
    "a matrix product": (64, 130, 1, 1, 0, 1, 13, 14),
    "copied in channels_last": (256, 300, 1, 1, 0, 1, 7, 7),
    "deep": (600, 35, 1, 1, 0, 1, 3, 3),
    "odd": (37, 67, 1, 1, 0, 1, 5, 9),
    "groups": (30, 20, 3, 2, 1, 5, 9, 9),
    "narrow": (5, 7, 2, 1, 0, 1, 5, 3),
}
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def _layer(
    name: str, layout: str, dtype: torch.dtype = torch.float32, integers: bool = False
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    C, K, size, stride, padding, groups, H, W = LAYERS[name]
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        if integers:
            return torch.randint(-3, 4, shape, generator=generator).to(dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, weight = make(2, C, H, W), make(K, C // groups, size, size)
    if not integers:
        weight /= weight[0].numel() ** 0.5
    tensors = (tensor.to(memory_format=FORMATS[layout]) for tensor in (x, weight))
    return *tensors, make(K), (stride, stride, *[padding] * 4, 1, 1, groups, 0)


def _exact(x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[int, ...]) -> Tensor:
    wide = None if bias is None else bias.double()
    return F.conv2d(x.double(), weight.double(), wide, options[0], options[2], 1, options[8])


def _residuals(like: Tensor) -> dict[str, Tensor]:
    """The same values, laid out in all kinds of ways."""
    values = torch.randint(-9, 10, like.shape, generator=torch.Generator().manual_seed(1)).to(like.dtype)
    N, K, P, Q = like.shape
    sliced = torch.zeros(N, K + 1, P, 2 * Q, dtype=like.dtype)[:, 1:, :, ::2]
    turned = torch.zeros(Q, P, K, N, dtype=like.dtype).permute(3, 2, 1, 0)
    return {
        "NCHW": values.contiguous(),
        "channels_last": values.contiguous(memory_format=torch.channels_last),
        "sliced": sliced.copy_(values),
        "turned": turned.copy_(values),
        "expanded": values[:1, :, :1].expand(like.shape),
    }


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_values(name: str, layout: str, isa: str) -> None:
    for dtype, tolerance in ((torch.float32, 3e-5), (torch.float64, 1e-13)):
        x, weight, bias, options = _layer(name, layout, dtype)
        for given in (bias, None):
            sums = _exact(x, weight, given, options)
            packed = ops.conv2d_pack_weight(x, weight, options)
            for activation, function in enumerate(ACTIVATIONS):
                for residual in (None, *_residuals(sums.to(dtype)).values()):
                    expected = function(sums if residual is None else sums + residual).to(dtype)
                    actual = ops.conv2d_forward(x, weight, given, options, activation, residual)
                    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
                    if packed.numel() > 0:
                        again = ops.conv2d_packed_forward(x, weight, given, packed, options, activation, residual)
                        assert torch.equal(again, actual)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_integers_are_exact(name: str, layout: str, isa: str, direct_sums: None) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x, weight, bias, options = _layer(name, layout, dtype, integers=True)
        sums = _exact(x, weight, bias, options)
        plain = ops.conv2d_forward(x, weight, bias, options, 0)
        assert torch.equal(plain, sums.to(dtype))
        for activation, function in enumerate(ACTIVATIONS[:3]):
            for residual in _residuals(plain).values():
                actual = ops.conv2d_forward(x, weight, bias, options, activation, residual)
                # Depthwise sums of 16 bits are rounded before the residual is added, as those that are not fused.
                depthwise = options[8] > 5 and dtype in (torch.bfloat16, torch.float16)
                expected = function((plain.double() if depthwise else sums) + residual).to(dtype)
                assert torch.equal(actual, expected)
                assert actual.stride() == plain.stride()


@pytest.mark.parametrize("name", LAYERS)
def test_reads_a_residual_and_writes_none(name: str) -> None:
    x, weight, bias, options = _layer(name, "NCHW")
    for residual in _residuals(_exact(x, weight, bias, options).float()).values():
        before = residual.clone()
        ops.conv2d_forward(x, weight, bias, options, 1, residual)
        assert torch.equal(residual, before)


@pytest.mark.parametrize("layout", FORMATS)
def test_the_input_may_be_the_residual(layout: str, isa: str) -> None:
    weight = torch.randint(-3, 4, (16, 16, 3, 3), generator=torch.Generator().manual_seed(2)).float()
    x = torch.randint(-3, 4, (2, 16, 9, 8), generator=torch.Generator().manual_seed(3)).float()
    x = x.to(memory_format=FORMATS[layout])
    actual = ops.conv2d_forward(x, weight, None, (1,) * 9 + (0,), 1, x)
    torch.testing.assert_close(actual, (F.conv2d(x, weight, padding=1) + x).relu(), rtol=0, atol=1e-3)


def _through(x: Tensor, activation: int) -> Tensor:
    """An activation alone, of a convolution that copies its input."""
    one = torch.ones(1, 1, 1, 1, dtype=x.dtype)
    options = (1, 1, 0, 0, 0, 0, 1, 1, 1, 0)
    return ops.conv2d_forward(x.view(1, 1, 1, -1), one, None, options, activation).view(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_silu_to_a_few_roundings(dtype: torch.dtype, isa: str) -> None:
    span = 95 if dtype is torch.float32 else 700
    x = torch.cat([torch.linspace(-span, span, 100_001), torch.linspace(-2, 2, 100_001)]).to(dtype)
    actual = _through(x, SILU)
    if dtype is torch.float64:
        torch.testing.assert_close(actual, F.silu(x), rtol=8 * torch.finfo(dtype).eps, atol=1e-300)
    else:
        torch.testing.assert_close(
            actual.double(),
            F.silu(x.double()),
            rtol=4 * torch.finfo(dtype).eps,
            atol=float(torch.finfo(dtype).tiny) * 64,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", [SILU, HARDSWISH])
def test_what_is_not_finite_is_as_torchs(activation: int, dtype: torch.dtype, isa: str) -> None:
    inf = float("inf")
    values = [inf, -inf, float("nan"), 0.0, 1e30, -1e30, -3.0, 3.0, -104.0, -88.5, 89.0, 1e-40]
    x = torch.tensor(values * 3, dtype=dtype)
    actual, expected = _through(x, activation), ACTIVATIONS[activation](x)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-36, equal_nan=True)


def test_hardswish_has_torchs_bits(isa: str) -> None:
    for name in LAYERS:
        x, weight, bias, options = _layer(name, "NCHW")
        plain = ops.conv2d_forward(x, weight, bias, options, 0)
        assert torch.equal(ops.conv2d_forward(x, weight, bias, options, HARDSWISH), F.hardswish(plain))


def test_threads_change_no_bits() -> None:
    for name in LAYERS:
        x, weight, bias, options = _layer(name, "NCHW")
        residual = _exact(x, weight, bias, options).float()
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(ops.conv2d_forward(x, weight, bias, options, SILU, residual))
        torch.set_num_threads(1)
        assert torch.equal(*results)


def test_an_infinity_in_the_sums_leaves_winograd() -> None:
    """Another algorithm then computes them all, residual included."""
    x, weight, bias, options = _layer("winograd", "NCHW")
    x[0, 0, 5, 5] = float("inf")
    residual = torch.randn(2, 37, 30, 29, generator=torch.Generator().manual_seed(4))
    expected = (F.conv2d(x, weight, bias, padding=1) + residual).relu()
    actual = ops.conv2d_forward(x, weight, bias, options, 1, residual)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_errors() -> None:
    x, weight, bias, options = _layer("odd", "NCHW")
    packed = ops.conv2d_pack_weight(x, weight, options)
    right = torch.zeros(2, 67, 5, 9)
    for residual, message in (
        (right[:1], r"residual must have the shape of the output, but got residual.shape=\[1, 67, 5, 9\]"),
        (right.double(), r"residual must have the dtype of input .*residual.dtype=Double"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.conv2d_forward(x, weight, bias, options, 0, residual)
        with pytest.raises(RuntimeError, match=message):
            ops.conv2d_packed_forward(x, weight, bias, packed, options, 0, residual)
