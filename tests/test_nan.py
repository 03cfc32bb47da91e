"""NaN and infinity come out where torch has them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from calls import forward_backward, ours, theirs
from torch import Tensor

from cnnfast.testing import DTYPES, Case, make_tensors

NAN, INF = math.nan, math.inf
SPECIAL = [NAN, INF, -INF]
POOLS = [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": 1}]
CONV = Case("", "conv2d", (2, 5, 9, 10), (9, 5, 3, 3), True, {"padding": 1})
# Wide enough for the direct kernels, whose last register of a row holds columns beyond it.
WIDE = Case("wide", "conv2d", (2, 5, 9, 13), (9, 5, 3, 3), True, {"padding": 1})


def assert_same(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal, NaN being equal to NaN: values are integers, so that no rounding is in the way."""
    assert torch.equal(actual.isnan(), expected.isnan()), f"NaN of {what}"
    assert torch.equal(actual.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0)), what


def _torch_backward(op: str, tensors: list[Tensor], arguments: dict[str, object]) -> tuple[Tensor, list[Tensor]]:
    leaves = [t.detach().double().requires_grad_() for t in tensors]
    output = theirs(op, *leaves, **arguments)
    return output.detach(), list(torch.autograd.grad(output, leaves, torch.ones_like(output)))


def _planted(shape: tuple[int, ...], dtype: torch.dtype, values: list[float]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randint(-1, 2, shape, generator=generator).to(dtype)
    places = torch.randperm(tensor.numel(), generator=generator)[: 7 * len(values)]
    tensor.view(-1)[places] = torch.tensor(values, dtype=dtype).repeat(7)
    return tensor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_relu(dtype: torch.dtype, channels_last: bool, isa: str) -> None:
    input = _planted((3, 5, 7, 9), dtype, [*SPECIAL, -0.0])
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    output, (gradient,) = forward_backward("relu", [input], {}, torch.ones_like(input))
    leaf = input.clone().requires_grad_()
    expected = F.relu(leaf)
    expected.backward(torch.ones_like(expected))
    assert_same(output, expected.detach())
    assert_same(gradient, leaf.grad)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_max_pool2d(pool: dict[str, int], dtype: torch.dtype, channels_last: bool, isa: str) -> None:
    input = _planted((3, 9, 11, 12), dtype, SPECIAL)
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    output, indices = ours("max_pool2d", input, **pool, return_indices=True)
    expected, expected_indices = F.max_pool2d(input, **pool, return_indices=True)
    assert_same(output, expected)
    assert torch.equal(indices, expected_indices)


def test_max_pool2d_of_nothing_but_minus_infinity(isa: str) -> None:
    input = torch.full((1, 9, 6, 6), -INF)
    for pool in POOLS:
        output, indices = ours("max_pool2d", input, **pool, return_indices=True)
        expected, expected_indices = F.max_pool2d(input, **pool, return_indices=True)
        assert torch.equal(output, expected)
        assert torch.equal(indices, expected_indices)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_avg_pool2d(pool: dict[str, int], dtype: torch.dtype, isa: str) -> None:
    input = _planted((3, 9, 11, 12), dtype, SPECIAL)
    output, expected = ours("avg_pool2d", input, **pool), F.avg_pool2d(input.double(), **pool)
    assert torch.equal(output.isnan(), expected.isnan())
    assert torch.equal(output.isinf(), expected.isinf())


FUSED = [("conv2d_relu_max_pool2d", {f"pool_{name}": size for name, size in pool.items()}) for pool in POOLS]


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("case,column", [(CONV, 5), (WIDE, 0), (WIDE, 8), (WIDE, 12)], ids=str)
@pytest.mark.parametrize("op,pool", [("conv2d", {}), ("conv2d_relu", {}), ("conv_transpose2d", {}), *FUSED], ids=str)
def test_one_special_input_element(
    op: str, pool: dict[str, int], case: Case, column: int, value: float, isa: str
) -> None:
    """No weight is 0: whether 0 * inf is added at all is the algorithm's choice in torch, too."""
    for dtype in DTYPES:
        input, weight, bias = make_tensors(case, dtype, seed=2, integers=True)
        weight[weight == 0] = 1
        if op == "conv_transpose2d":
            weight, bias = weight[:5].repeat(1, 2, 1, 1)[:, :9].contiguous(), bias
        input[1, 3, 4, column] = value
        arguments = {"padding": 1, **pool}
        expected, expected_gradients = _torch_backward(op, [input, weight, bias], arguments)
        output, gradients = forward_backward(op, [input, weight, bias], arguments, torch.ones_like(expected).to(dtype))
        assert_same(output.double(), expected, "output")
        for i, (actual, gradient) in enumerate(zip(gradients, expected_gradients)):
            gradient = gradient.to(dtype)
            if op == "conv2d_relu_max_pool2d":
                # Its backward skips the zeros of the un-pooled gradient, which torch multiplies by the special value.
                assert not (actual.isnan() & ~gradient.isnan()).any()
                actual = actual.masked_fill(gradient.isnan(), NAN)
            assert_same(actual, gradient, f"gradient {i} in {dtype}")


@pytest.mark.parametrize("op,pool", [("conv2d_relu", {}), *FUSED], ids=str)
def test_special_bias(op: str, pool: dict[str, int], isa: str) -> None:
    """A whole channel of NaN (which wins, and passes a gradient), of inf, and of -inf (which ReLU clips)."""
    input, weight, bias = make_tensors(CONV, torch.float32, seed=2, integers=True)
    bias[:3] = torch.tensor(SPECIAL)
    arguments = {"padding": 1, **pool}
    expected, expected_gradients = _torch_backward(op, [input, weight, bias], arguments)
    output, gradients = forward_backward(
        op, [input, weight, bias], arguments, torch.ones_like(expected, dtype=torch.float32)
    )
    assert_same(output.double(), expected, "output")
    for i, (actual, gradient) in enumerate(zip(gradients, expected_gradients)):
        assert_same(actual.double(), gradient, f"gradient {i}")


@pytest.mark.parametrize("channels_last", [False, True])
def test_window_without_elements(channels_last: bool, isa: str) -> None:
    """Dilation can leave a padded window with no element: -inf, no gradient. (torch 2.13 writes out of bounds.)"""
    format = torch.channels_last if channels_last else torch.contiguous_format
    pool = {"kernel_size": 3, "padding": 1, "dilation": 2, "ceil_mode": True}
    input = torch.ones(2, 9, 1, 1).contiguous(memory_format=format)
    output, (gradient,) = forward_backward("max_pool2d", [input], pool, torch.ones(2, 9, 1, 1))
    assert torch.equal(output, torch.full((2, 9, 1, 1), -INF))
    assert torch.equal(gradient, torch.zeros(2, 9, 1, 1))

    weight = torch.ones(9, 9, 1, 1)
    fused = {name if name == "ceil_mode" else f"pool_{name}": value for name, value in pool.items()}
    output, gradients = forward_backward("conv2d_relu_max_pool2d", [input, weight], fused, torch.ones(2, 9, 1, 1))
    assert torch.equal(output, torch.full((2, 9, 1, 1), -INF))
    for gradient in gradients:
        assert not gradient.any()

    # The same where the map is as wide as a register.
    input, weight = torch.ones(2, 3, 8, 9), torch.ones(9, 3, 1, 1)
    fused = {"pool_kernel_size": (2, 1), "pool_padding": (1, 0), "pool_dilation": (9, 1), "pool_stride": 1}
    assert torch.equal(ours("conv2d_relu_max_pool2d", input, weight, **fused), torch.full((2, 9, 1, 9), -INF))
    output, gradients = forward_backward("conv2d_relu_max_pool2d", [input, weight], fused, torch.ones(2, 9, 1, 9))
    assert torch.equal(output, torch.full((2, 9, 1, 9), -INF))
    for gradient in gradients:
        assert not gradient.any()
