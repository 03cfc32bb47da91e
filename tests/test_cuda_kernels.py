"""The CUDA kernels, on the CPU over the emulation of tests/cuda_host, or on a GPU with --device cuda.

The emulated ops replace the CPU's beneath cnnfast's own functions. Every case runs under four orders of threads and
blocks and two fillings of shared memory, whose results must be the same bits: a race, or a read of what nobody wrote,
would show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from calls import forward_backward, theirs
from cuda_host.fixture import emulated  # noqa: F401
from torch import Tensor

from cnnfast import autograd, decomposition, functional, library, routing
from cnnfast.testing import DTYPES, LAYOUTS, OPS, Case, assert_within, cases, make_tensors, random_tensor, reference

# (order of threads and blocks, its seed, the byte that fills shared memory): NaN, or 1e30
SCHEDULES = [(0, 0, 0xFF), (1, 0, 0x71), (2, 0, 0xFF), (3, 1, 0x71)]


@pytest.fixture
def runs(request: pytest.FixtureRequest, device: torch.device) -> Iterator[list[tuple[int, int, int] | None]]:
    """The schedules a test runs under: on a GPU there is one, and it is the GPU's."""
    if device.type == "cuda":
        assert library.cuda_error is None, library.cuda_error
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(routing, "_NEED_TENSOR_CORES", frozenset())  # all kernels that there are, and no other route
            patch.setenv("CNNFAST_STRICT", "1")
            patch.setattr(functional, "allow_tf32", lambda: False)  # as on the CPU; a fixture allows it
            yield [None] * 3  # the same bits each time
        return
    request.getfixturevalue("emulated")
    yield list(SCHEDULES)


def results_of(
    case: Case, tensors: tuple[Tensor, ...], grad_output: Tensor, runs: list[tuple[int, int, int] | None], device: str
) -> list[Tensor]:
    """Output and gradients; the same bits under every schedule."""
    first: list[Tensor] | None = None
    for schedule in runs:
        if schedule is not None:
            torch.ops.cnnfast_emulated.set_schedule(*schedule)
        output, gradients = forward_backward(case.op, tensors, case.arguments, grad_output, device)
        results = [output, *gradients]
        if first is None:
            first = results
        for one, other in zip(first, results, strict=True):
            assert torch.equal(one, other), f"{case} depends on the schedule {schedule}"
    assert first is not None
    return [result.cpu() for result in first]


def check(
    case: Case,
    dtype: torch.dtype,
    layout: str,
    runs: list[tuple[int, int, int] | None],
    device: str,
    values: torch.dtype | None = None,
) -> None:
    """``values``: a type of fewer digits, of which all values are."""
    # Integers where a 16-bit map between convolution and pool would round its values to other winners.
    integers = "max_pool2d" in case.op and dtype in (torch.float16, torch.bfloat16)
    tensors = make_tensors(case, dtype, seed=1, integers=integers, layout=layout, weight_layout=layout)
    shape = theirs(case.op, *(t.to("meta") for t in tensors), **case.arguments).shape
    grad_output = random_tensor(shape, dtype, torch.Generator().manual_seed(2))
    if values is not None:
        for tensor in (*tensors, grad_output):
            tensor.copy_(tensor.to(values))
    expected = reference(case.op, *tensors, grad_output=grad_output, **case.arguments)
    results = results_of(case, tensors, grad_output, runs, device)
    names = ["output", "grad_input", "grad_weight", "grad_bias"]
    for name, actual, bound in zip(names, results, [expected.output, *expected.gradients], strict=False):
        assert actual.dtype == dtype
        assert_within(actual, bound, f"{case} {name}")


# Emulated threads take microseconds each: images and maps of the size that matters, no more.
MOST_PRODUCTS = 1_500_000
CASES = [
    case
    for op in OPS
    for case in cases(op)
    if math.prod(case.input) * math.prod(case.weight or (1,)) / max(1, case.input[-3]) < MOST_PRODUCTS
]
LECTURE = [
    Case(f"lecture_{i}", "conv2d_relu_max_pool2d", input, weight, True, {"padding": 1})
    for i, (input, weight) in enumerate((((3, 1, 28, 28), (12, 1, 3, 3)), ((2, 12, 14, 14), (24, 12, 3, 3))))
]


# More images than slices of the fused backward, more bands and blocks than are resident, parts of windows.
MORE = [
    Case("many_images", "conv2d_relu_max_pool2d", (300, 2, 6, 5), (3, 2, 3, 3), True, {"padding": 1}),
    Case("bands", "conv2d_relu_max_pool2d", (2, 3, 70, 61), (5, 3, 3, 3), True, {"padding": (0, 1)}),
]
# Channels enough for implicit GEMM: several tiles of pixels and channels, groups, strides, dilation, both directions.
GEMM = [
    Case("tiles", "conv2d", (2, 9, 13, 11), (70, 9, 3, 3), True, {"padding": 1}),
    Case("two_tiles_of_channels", "conv2d_relu", (1, 33, 3, 5), (130, 33, 1, 1), True, {}),
    Case("grouped", "conv2d", (1, 8, 9, 9), (34, 4, 3, 3), True, {"groups": 2}),
    Case("strided", "conv2d", (2, 20, 11, 12), (33, 20, 3, 2), True,
         {"stride": (2, 3), "padding": 1, "dilation": (1, 2)}),
    Case("slices_of_pixels", "conv2d", (5, 4, 15, 18), (17, 4, 3, 3), True, {"padding": 1}),
    Case("depthwise_5x5", "conv2d_relu", (2, 33, 11, 9), (33, 1, 5, 4), True, {"padding": 2, "groups": 33}),
    Case("depthwise_strided", "conv2d", (2, 5, 12, 11), (10, 1, 3, 3), True,
         {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 5}),
    Case("depthwise_slices", "conv2d", (9, 2, 21, 23), (2, 1, 3, 3), False, {"padding": 1, "groups": 2}),
    Case("tiles_of_128", "conv2d", (3, 12, 9, 10), (132, 12, 3, 3), True, {"padding": 1}),
    Case("transposed", "conv_transpose2d", (2, 33, 5, 6), (33, 20, 3, 3), True,
         {"stride": 2, "output_padding": 1, "groups": 1}),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *LECTURE, *MORE, *GEMM], ids=str)
def test_every_case(case: Case, runs: list[tuple[int, int, int] | None], device: torch.device) -> None:
    check(case, torch.float32, "contiguous", runs, str(device))


FEW = [case for case in CASES if case.label.startswith(("lopsided", "odd_batch_tail", "5x5", "odd_size", "tail"))]


def test_without_input_gradient(runs: list[tuple[int, int, int] | None], device: torch.device) -> None:
    """The fused backward then keeps no map, and a slice's images follow each other in the same memory."""
    case = Case("first_layer", "conv2d_relu_max_pool2d", (300, 1, 8, 8), (4, 1, 3, 3), True, {"padding": 1})
    tensors = make_tensors(case, torch.float32, seed=1)
    grad_output = random_tensor((300, 4, 4, 4), torch.float32, torch.Generator().manual_seed(2))
    expected = reference(case.op, *tensors, grad_output=grad_output, **case.arguments).gradients[1:]
    for schedule in runs:
        if schedule is not None:
            torch.ops.cnnfast_emulated.set_schedule(*schedule)
        _, gradients = forward_backward(
            case.op, tensors, case.arguments, grad_output, str(device), wanted=[False, True, True]
        )
        for actual, bound in zip(gradients, expected, strict=True):
            assert_within(actual.cpu(), bound, f"{case} under {schedule}")


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions are told that float32 may be rounded."""
    monkeypatch.setattr(functional, "_with_precision", lambda device, options: (*options[:-1], True))


# float16 has tf32's digits, so that float32's bounds hold: products are exact, only sums are rounded.
@pytest.mark.parametrize("case", GEMM, ids=str)
def test_tensor_cores_of_tf32(
    case: Case, tf32: None, runs: list[tuple[int, int, int] | None], device: torch.device
) -> None:
    check(case, torch.float32, "contiguous", runs, str(device), values=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", GEMM, ids=str)
def test_tensor_cores_of_16_bits(
    case: Case, dtype: torch.dtype, runs: list[tuple[int, int, int] | None], device: torch.device
) -> None:
    check(case, dtype, "channels_last", runs, str(device))


@pytest.mark.parametrize("case", GEMM, ids=str)
def test_16_bits_without_tensor_cores(
    case: Case, runs: list[tuple[int, int, int] | None], device: torch.device
) -> None:
    """As on GPUs before compute capability 8.0."""
    if device.type == "cuda":
        pytest.skip("a GPU's tensor cores cannot be taken away")
    torch.ops.cnnfast_emulated.set_tensor_cores(False)
    try:
        check(case, torch.bfloat16, "contiguous", runs[-1:], str(device))
    finally:
        torch.ops.cnnfast_emulated.set_tensor_cores(True)


def test_tf32_is_rounded_only_where_allowed(runs: list[tuple[int, int, int] | None], device: torch.device) -> None:
    """1 + 2^-11 has one digit more than tf32: it becomes 1 + 2^-10, its tie going away from zero."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        pytest.skip("no tensor cores of tf32")
    numbers, fine, coarse = (1, 1, 0, 0, 0, 0, 1, 1, 1), 1 + 2**-11, 1 + 2**-10
    for values in ((fine, 1.0), (1.0, fine)):
        input = torch.full((1, 32, 4, 4), values[0], device=device)
        weight = torch.full((16, 32, 1, 1), values[1], device=device)
        ieee = autograd.Conv2d.compute(input, weight, None, (*numbers, False))
        assert torch.equal(ieee, torch.full_like(ieee, 32 * fine))
        rounded = autograd.Conv2d.compute(input, weight, None, (*numbers, True))
        assert torch.equal(rounded, torch.full_like(rounded, 32 * coarse))
        # Operands of the weight's gradient: input, and grad_output in the place of the weight.
        backward = autograd._conv2d_backward
        grad_output = torch.full((1, 16, 4, 4), values[1], device=device)
        _, ieee, _ = backward(grad_output, input, weight, (*numbers, False), [False, True, False])
        assert torch.equal(ieee, torch.full_like(ieee, 16 * fine))
        _, rounded, _ = backward(grad_output, input, weight, (*numbers, True), [False, True, False])
        assert torch.equal(rounded, torch.full_like(rounded, 16 * coarse))


def test_nan_and_infinity_on_tensor_cores(
    tf32: None, runs: list[tuple[int, int, int] | None], device: torch.device
) -> None:
    input, weight = torch.ones(1, 36, 4, 4), torch.ones(16, 36, 1, 1)  # nine chunks: a step's end has no tap
    input[0, 3, 3, 3], input[0, 5, 1, 1], input[0, 7, 2, 2] = math.nan, math.inf, -math.inf
    output = functional.conv2d(input.to(device), weight.to(device)).cpu()
    torch.testing.assert_close(output, F.conv2d(input, weight), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [*FEW, *GEMM], ids=str)
def test_layouts_and_dtypes(
    case: Case, layout: str, dtype: torch.dtype, runs: list[tuple[int, int, int] | None], device: torch.device
) -> None:
    check(case, dtype, layout, runs[-1:], str(device))


@pytest.mark.parametrize("case", [c for c in LECTURE], ids=str)
def test_winners_of_the_fused_op(case: Case, runs: list[tuple[int, int, int] | None], device: torch.device) -> None:
    """Ties, NaN and infinity: output and code are those of the CPU's kernels."""
    generator = torch.Generator().manual_seed(4)
    input, weight, bias = make_tensors(case, torch.float32, seed=3, integers=True)
    input.view(-1)[torch.randperm(input.numel(), generator=generator)[:12]] = torch.tensor(
        [math.nan, math.inf, -math.inf]
    ).repeat(4)
    options = (1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 1, 1, 0, 0)
    expected = torch.ops.cnnfast.conv2d_relu_max_pool2d_forward(input, weight, bias, options, True)
    arguments = [tensor.to(device) for tensor in (input, weight, bias)]
    actual = autograd.Conv2dReLUMaxPool2d.compute(*arguments, options)
    for mine, cpus in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), cpus, rtol=0, atol=0, equal_nan=True)


def test_no_images_of_no_pixels(runs: list[tuple[int, int, int] | None], device: torch.device) -> None:
    input, weight = torch.ones(0, 32, 0, 0, device=device), torch.ones(32, 16, 3, 3, device=device)
    grad_output, options = torch.ones(0, 16, 0, 0, device=device), (1, 1, 1, 1, 0, 0, 1, 1, 1, 0)
    backward = autograd._conv_transpose2d_backward
    grad_input, grad_weight, grad_bias = backward(grad_output, input, weight, options, [True] * 3)
    assert grad_input.shape == input.shape
    assert torch.equal(grad_weight, torch.zeros_like(weight))
    assert torch.equal(grad_bias, torch.zeros(16, device=device))


def test_relu_of_special_values(runs: list[tuple[int, int, int] | None], device: torch.device) -> None:
    input = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1.0, -1.0, 0.0], device=device)
    leaf = input.clone().requires_grad_()
    expected = F.relu(leaf)
    expected.backward(torch.ones_like(expected))
    output = autograd.ReLU.compute(input, ())
    torch.testing.assert_close(output, expected.detach(), rtol=0, atol=0, equal_nan=True)
    gradient = autograd._relu_backward(torch.ones_like(output), output)
    assert torch.equal(gradient, leaf.grad)


def test_winners_of_max_pool2d(runs: list[tuple[int, int, int] | None], device: torch.device) -> None:
    """Ties, NaN and infinity as in torch, and its indices."""
    generator = torch.Generator().manual_seed(3)
    input = torch.randint(-1, 2, (2, 5, 11, 12), generator=generator).float()
    input.view(-1)[torch.randperm(input.numel(), generator=generator)[:40]] = torch.tensor(
        [math.nan, math.inf, -math.inf, -0.0]
    ).repeat(10)
    pool = {"kernel_size": 3, "stride": 2, "padding": 1}
    expected, indices = F.max_pool2d(input, **pool, return_indices=True)
    output, mine = autograd.MaxPool2d.compute(input.to(device), (3, 3, 2, 2, 1, 1, 1, 1, False))
    torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(mine.cpu(), indices)
    output, code = autograd.MaxPool2dWithCode.compute(input.to(device), (3, 3, 2, 2, 1, 1, 1, 1, False))
    torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(
        code.cpu(), decomposition.max_pool2d_with_code(input, [3] * 2, [2] * 2, [1] * 2, [1] * 2, False)[1]
    )
