"""The fused op: its code, its ties, its gradients of both orders, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calls import forward_backward, leaves_of, ours, theirs
from torch import Tensor

from cnnfast.testing import Case, assert_within, cases, make_tensors, reference

pytestmark = pytest.mark.usefixtures("direct_sums")

OP = "conv2d_relu_max_pool2d"
CLIPPED = 255
POOLS: list[dict[str, Any]] = [
    {},
    {"pool_kernel_size": 3, "pool_stride": 2},
    {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
    {"pool_kernel_size": (2, 3), "pool_stride": 1},
    {"pool_kernel_size": 3, "pool_stride": 2, "ceil_mode": True},
    {"pool_kernel_size": 2, "pool_stride": (1, 2), "pool_dilation": (2, 1)},
]
CONVOLUTIONS: list[dict[str, Any]] = [
    {"padding": 1},
    {"padding": "same"},
    {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
    {"padding": 0, "groups": 2},
]


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _doubles(convolution: dict[str, Any], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    groups = convolution.get("groups", 1)
    shapes = ((2, 2, 8, 7), (4, 2 // groups, 2 if convolution["padding"] == "same" else 3, 3), (4,))
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def _integers(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(-1, 2, shape, generator=generator).float() for shape in shapes]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_gradients_of_both_orders(convolution: dict[str, Any], pool: dict[str, Any], device: torch.device) -> None:
    """gradcheck differences values: random doubles have no near-ties within its step."""
    leaves = leaves_of(_doubles(convolution), device)

    def function(*tensors: Tensor) -> Tensor:
        return ours(OP, *tensors, **convolution, **pool)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_gradients_of_both_orders_of_conv2d_relu(convolution: dict[str, Any], device: torch.device) -> None:
    leaves = leaves_of(_doubles(convolution), device)

    def function(*tensors: Tensor) -> Tensor:
        return ours("conv2d_relu", *tensors, **convolution)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_slow_gradcheck_once(device: torch.device) -> None:
    """Every entry of the Jacobian, of one small shape without batch."""
    leaves = leaves_of([t[0, :, :5, :5] if t.dim() == 4 and t.shape[0] == 2 else t for t in _doubles({"padding": 1})])
    leaves = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda *t: ours(OP, *t, padding=1, pool_kernel_size=3, pool_stride=2), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [c for c in cases(OP) if not isinstance(c.arguments["padding"], str)], ids=str)
def test_code_names_the_winner(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    """The un-pooled value at the coded place is the output; where the code says clipped, no value is positive."""
    tensors = make_tensors(case, dtype, seed=3, integers=True)
    arguments = case.arguments
    pad_h, pad_w = _pair(arguments["padding"])
    kernel = _pair(arguments.get("pool_kernel_size", 2))
    stride = _pair(arguments.get("pool_stride", tuple(kernel)))
    padding, dilation = _pair(arguments.get("pool_padding", 0)), _pair(arguments.get("pool_dilation", 1))
    conv = [*_pair(arguments["stride"]), pad_h, pad_h, pad_w, pad_w, *_pair(arguments["dilation"]), arguments["groups"]]
    pool = [*kernel, *stride, *padding, *dilation, arguments.get("ceil_mode", False)]
    given = [t.to(device) for t in tensors] + [None] * (3 - len(tensors))
    output, code = torch.ops.cnnfast.conv2d_relu_max_pool2d_forward(*given, [*conv, *pool, False], True)
    assert code.dtype == torch.uint8
    assert code.shape == output.shape

    single = output.dim() == 3
    output, code = (t.cpu().unsqueeze(0) if single else t.cpu() for t in (output, code))
    linear = {k: v for k, v in arguments.items() if not k.startswith("pool_") and k != "ceil_mode"}
    dense = F.conv2d(*(t.double() for t in tensors), **linear)
    dense = dense.unsqueeze(0) if single else dense
    taps = code.long()
    rows = torch.arange(code.shape[2]).view(-1, 1) * stride[0] - padding[0] + taps // kernel[1] * dilation[0]
    columns = torch.arange(code.shape[3]) * stride[1] - padding[1] + taps % kernel[1] * dilation[1]
    clipped = code == CLIPPED
    assert torch.equal(clipped, output == 0)
    rows, columns = rows.masked_fill(clipped, 0), columns.masked_fill(clipped, 0)
    assert bool((rows >= 0).all() and (columns >= 0).all())
    winners = dense.flatten(2).gather(2, (rows * dense.shape[3] + columns).flatten(2)).view_as(output)
    assert torch.equal(torch.where(clipped, 0, winners), output.double())


def test_first_of_equals_wins(isa: str) -> None:
    """A constant image ties every window: the gradient goes to its first element, as torch's does."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        input, weight = torch.ones(3, 2, 9, 8, dtype=dtype), torch.ones(5, 2, 1, 1, dtype=dtype)
        for pool in POOLS:
            shape = theirs(OP, input, weight, **pool).shape
            grad_output = torch.ones(shape, dtype=dtype)
            expected = reference(OP, input, weight, grad_output=grad_output, **pool)
            _, gradients = forward_backward(OP, [input, weight], pool, grad_output)
            for actual, gradient in zip(gradients, expected.gradients):
                assert torch.equal(actual, gradient.value.to(dtype))


def test_nothing_passes_where_relu_clips(isa: str) -> None:
    input, weight, bias = torch.ones(3, 2, 9, 8), torch.ones(9, 2, 3, 3), torch.full((9,), -100.0)
    bias[4] = -18.0  # exactly 0: clipped as well
    output, gradients = forward_backward(OP, [input, weight, bias], {"padding": 1}, torch.ones(3, 9, 4, 4))
    assert not output.any()
    for gradient in gradients:
        assert not gradient.any()


def test_windows_beyond_a_byte_are_pooled_unfused(device: torch.device) -> None:
    tensors = _integers((1, 2, 20, 19), (3, 2, 3, 3))
    for kernel in ((16, 16), (127, 2), (2, 127), 17):
        arguments = {"padding": (60, 60), "pool_kernel_size": kernel, "pool_stride": 7}
        shape = theirs(OP, *tensors, **arguments).shape
        grad_output = torch.ones(shape)
        expected = reference(OP, *tensors, grad_output=grad_output, **arguments)
        output, gradients = forward_backward(OP, tensors, arguments, grad_output, device)
        assert torch.equal(output.cpu(), expected.output.value.float())
        for actual, gradient in zip(gradients, expected.gradients):
            assert torch.equal(actual.cpu(), gradient.value.float())


def test_returns_the_output_alone_and_keeps_no_map(device: torch.device) -> None:
    input, weight, bias = leaves_of(_integers((8, 3, 16, 16), (6, 3, 3, 3), (6,)), device)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = ours(OP, input, weight, bias, padding=1)
    assert isinstance(output, Tensor)
    others = [t for t in kept if t.data_ptr() not in (input.data_ptr(), weight.data_ptr())]
    assert [t.dtype for t in others] == [torch.uint8]
    assert others[0].shape == output.shape


def test_changing_a_kept_tensor_is_noticed(device: torch.device) -> None:
    input, weight = leaves_of(_integers((2, 3, 6, 6), (6, 3, 3, 3)), device)
    output = ours(OP, input, weight, padding=1)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_backward_twice_needs_retain_graph(device: torch.device) -> None:
    input, weight = leaves_of(_integers((2, 3, 6, 6), (6, 3, 3, 3)), device)
    output = ours(OP, input, weight).sum()
    output.backward(retain_graph=True)
    first = weight.grad.clone()
    output.backward()
    assert torch.equal(weight.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        output.backward()


@pytest.mark.parametrize(
    "arguments",
    [
        {"pool_stride": 10**12},
        {"pool_kernel_size": 3, "pool_padding": 1, "pool_stride": 10**12},
        {"stride": 10**7, "padding": 1, "pool_kernel_size": 1},
        {"stride": 10**7, "padding": 1, "pool_kernel_size": 3, "pool_padding": 1},
    ],
    ids=str,
)
def test_a_step_beyond_the_map(arguments: dict[str, int]) -> None:
    """With one window, or one pixel, any step is the same, and takes no more memory."""
    tensors = _integers((2, 3, 4, 5), (8, 3, 3, 3), (8,))
    leaves, others = leaves_of(tensors), leaves_of(tensors)
    # oneDNN counts such a step out.
    shorter = {name: min(value, 20) for name, value in arguments.items()}
    output, expected = ours(OP, *leaves, **arguments), theirs(OP, *others, **shorter)
    assert torch.equal(output, expected)
    actual = torch.autograd.grad(output.sum(), leaves)
    assert all(map(torch.equal, actual, torch.autograd.grad(expected.sum(), others)))


def _backward_of_code(code: Tensor, pool_padding: int = 0) -> None:
    """The raw backward of a 3x3 pooling with stride 2 over a 4x4 map, from a code of the caller's."""
    grad_output, input, weight = torch.ones(1, 2, 2, 2), torch.ones(1, 3, 4, 4), torch.ones(2, 3, 3, 3)
    convolution = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    pool = (3, 3, 2, 2, pool_padding, pool_padding, 1, 1, pool_padding == 0)  # 2x2 windows either way
    torch.ops.cnnfast.conv2d_relu_max_pool2d_backward(
        grad_output, code, input, weight, (*convolution, *pool, False), (True, True, True)
    )


def test_code_from_outside_is_checked() -> None:
    """A code is followed as an offset into the image, so one that leads out of it must not be."""
    good = torch.full((1, 2, 2, 2), 255, dtype=torch.uint8)
    _backward_of_code(good)
    with pytest.raises(RuntimeError, match=r"code must have the shape of grad_output, but got code.shape=\[8\]"):
        _backward_of_code(good.flatten())
    with pytest.raises(RuntimeError, match="code must have dtype uint8, but got code.dtype="):
        _backward_of_code(good.int())
    # 9 is past the window; element 8 of the last window lies beyond the map, element 0 of the first in the padding.
    for winner, place, padding in ((9, (0, 1, 0, 0), 0), (8, (0, 1, 1, 1), 0), (0, (0, 0, 0, 0), 1)):
        bad = good.clone()
        bad[place] = winner
        with pytest.raises(RuntimeError, match="every code must be 255 or name a winner inside the 4x4 map"):
            _backward_of_code(bad, padding)


def _tile_bound(input: Tensor, weight: Tensor) -> Tensor:
    """What Winograd's F(2x2, 3x3) may err, for each window: every element of a tile may reach every output.

    Transforming 4x4 inputs with sums of 2 terms twice makes elements of up to 4 max|d|, the 3x3 kernel up to
    2.25 max|g|; an output sums 9 products of those per channel; each is the end of at most C + 12 roundings.
    """
    channels = weight.shape[1]
    tiles = F.max_pool2d(F.pad(input, (1, 1, 1, 1)).abs(), 4, stride=2)
    largest = weight.abs().amax((2, 3))
    return torch.finfo(torch.float32).eps * (channels + 12) * 81 * torch.einsum("nchw,kc->nkhw", tiles, largest)


@pytest.mark.parametrize("column", ["ordinary", "large"])
def test_inference_errs_by_the_tile_and_training_by_the_element(column: str, isa: str) -> None:
    generator = torch.Generator().manual_seed(5)
    input, weight = (torch.randn(size, generator=generator) for size in ((2, 8, 8, 8), (16, 8, 3, 3)))
    if column == "large":  # which meets zeros only, but for the windows beside it
        input[..., 3] = -1e6
        weight[..., 1:] = 0
    expected = reference(OP, input, weight, padding=1)
    training = ours(OP, input, weight.clone().requires_grad_(), padding=1)
    assert_within(training.detach(), expected.output, "training")
    inference = ours(OP, input, weight, padding=1)
    error = (inference.double() - expected.output.value).abs()
    assert (error <= _tile_bound(input, weight)).all()
