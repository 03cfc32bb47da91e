"""The raw pooling ops against torch: exact for maxima and their indices, within theory's bounds for averages."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cnnfast  # noqa: F401  (registers the ops)
from cnnfast.decomposition import DECOMPOSITIONS
from cnnfast.testing import DTYPES, LAYOUTS, Case, assert_within, cases, make_tensors, random_tensor, reference

ops = torch.ops.cnnfast
NAN = float("nan")

ISAS: list[str] = json.loads(ops.cpu_info())["supported"]


@pytest.fixture(autouse=True)
def keep_isa() -> Iterator[None]:
    before = json.loads(ops.cpu_info())["isa"]
    yield
    ops.set_cpu_isa(before)


def each_isa() -> Iterator[str]:
    """Every instruction set that runs here, set while the loop's body runs."""
    for isa in ISAS:
        assert ops.set_cpu_isa(isa)
        yield isa


def pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def max_arguments(arguments: Any) -> list[Any]:
    """kernel_size, stride, padding, dilation, ceil_mode as the op wants them."""
    kernel_size = arguments["kernel_size"]
    return [
        pair(kernel_size),
        pair(arguments.get("stride", kernel_size)),
        pair(arguments.get("padding", 0)),
        pair(arguments.get("dilation", 1)),
        arguments.get("ceil_mode", False),
    ]


def avg_arguments(arguments: Any) -> list[Any]:
    """kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override."""
    kernel_size, stride, padding, _, ceil_mode = max_arguments(arguments)
    count_include_pad, divisor = arguments.get("count_include_pad", True), arguments.get("divisor_override")
    return [kernel_size, stride, padding, ceil_mode, count_include_pad, divisor]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal in every element (NaN where NaN), and in strides, as a user of torch's op would see them."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if actual.numel() > 0:
        assert actual.stride() == expected.stride()


def with_nans(input: Tensor, generator: torch.Generator) -> Tensor:
    return input.masked_fill_(torch.rand(input.shape, generator=generator) < 0.03, NAN)


# Windows that no labelled case has: strides, paddings and dilations that differ, on registers whole and not.
GEOMETRIES = [
    {"kernel_size": (3, 2), "padding": (1, 0), "stride": 1},
    {"kernel_size": (2, 3), "padding": (0, 1), "stride": (1, 2), "dilation": 2, "ceil_mode": True},
    {"kernel_size": 3, "padding": 1, "stride": (3, 1), "dilation": (1, 2)},
    {"kernel_size": (5, 1), "padding": (2, 0), "stride": (2, 3), "ceil_mode": True},
    {"kernel_size": 2, "padding": 1, "stride": 3, "ceil_mode": True},
    {"kernel_size": 4, "padding": 2, "stride": 2},
]
MORE_CASES = [
    Case(f"geometry_{i}_{C}x{H}x{W}", "max_pool2d", (2, C, H, W), arguments=geometry)
    for (i, geometry), (C, H, W) in itertools.product(enumerate(GEOMETRIES), [(3, 8, 9), (17, 13, 21), (8, 12, 40)])
]


def few_images(case: Case) -> Case:
    """Every image is a task of its own, so three say as much as 64."""
    return dataclasses.replace(case, input=(min(case.input[0], 3), *case.input[1:])) if len(case.input) == 4 else case


MAX_CASES = [few_images(case) for case in cases("max_pool2d")] + MORE_CASES
AVG_CASES = [few_images(case) for case in cases("avg_pool2d")] + [
    dataclasses.replace(
        case,
        label=f"{case.label}_{'with' if count_include_pad else 'without'}_padding",
        op="avg_pool2d",
        arguments=case.arguments | {"count_include_pad": count_include_pad},
    )
    for case, count_include_pad in itertools.product(MORE_CASES, [True, False])
    if "dilation" not in case.arguments
]


def flat_options(arguments: list[Any]) -> list[int]:
    *pairs, ceil_mode = arguments
    return [value for pair in pairs for value in pair] + [int(ceil_mode)]


def max_pool2d_backward(grad_output: Tensor, winner: Tensor, input: Tensor, arguments: list[Any]) -> Tensor:
    return ops.max_pool2d_backward(grad_output, winner, list(input.shape[-2:]), flat_options(arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", MAX_CASES, ids=str)
def test_max_pool2d(case: Case, dtype: torch.dtype) -> None:
    arguments = max_arguments(case.arguments)
    generator = torch.Generator().manual_seed(1)
    # Small integers: most windows have ties.
    (values,) = make_tensors(case, dtype, seed=0, integers=True)
    with_nans(values, generator)
    for layout, arrange in LAYOUTS.items():
        input = arrange(values)
        output, indices = F.max_pool2d(input, *arguments, return_indices=True)
        grad_output = random_tensor(output.shape, dtype, generator, integers=True)
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        grad_input = backward(grad_output.double(), input.double(), *arguments, indices).to(dtype)
        for _ in each_isa():
            mine, my_indices = ops.max_pool2d(input, *arguments)
            assert_same(mine, output)
            assert_same(my_indices, indices)
            alone, nothing = ops.max_pool2d_forward(input, flat_options(arguments), 0)
            assert_same(alone, output)
            assert nothing.shape == (0,) and nothing.dtype == torch.int64
            winners = [my_indices]
            if math.prod(arguments[0]) <= 254:
                with_code, code = ops.max_pool2d_with_code(input, *arguments)
                assert_same(with_code, output)
                assert torch.equal(code, DECOMPOSITIONS["max_pool2d_with_code"](input, *arguments)[1])
                assert code.stride() == with_code.stride()
                winners.append(code)
            for grad_layout in {"contiguous", layout} - {"expanded"}:
                gradient = LAYOUTS[grad_layout](grad_output)
                for winner in winners:
                    assert_same(max_pool2d_backward(gradient, winner, input, arguments), grad_input)


def test_code_of_a_window_that_dilation_steps_over() -> None:
    """It has no winner, here and in torch's operations."""
    input, arguments = torch.randn(1, 3, 2, 2), ([2, 2], [1, 1], [1, 1], [3, 3], False)
    for code in (
        ops.max_pool2d_with_code(input, *arguments)[1],
        DECOMPOSITIONS["max_pool2d_with_code"](input, *arguments)[1],
    ):
        assert torch.equal(code, torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
        gradient = max_pool2d_backward(torch.ones(1, 3, 1, 1), code, input, list(arguments))
        assert not gradient.any()


def test_max_pool2d_of_normal_values() -> None:
    for case in MAX_CASES:
        (input,) = make_tensors(case, torch.float32, seed=2)
        arguments = max_arguments(case.arguments)
        expected = F.max_pool2d(input, *arguments, return_indices=True)
        for _ in each_isa():
            for mine, torchs in zip(ops.max_pool2d(input, *arguments), expected):
                assert_same(mine, torchs)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("window", "value", "index"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.0, 0),  # the first of equals
        ([0.0, -0.0, 0.0, -0.0], 0.0, 0),
        ([-float("inf")] * 4, -float("inf"), 0),
        ([1.0, NAN, 3.0, 2.0], NAN, 1),
        ([NAN, 1.0, NAN, 2.0], NAN, 2),  # the last of several NaN
    ],
)
def test_winner_of_one_window(window: list[float], value: float, index: int, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    # Enough windows for whole registers and single elements.
    input = torch.tensor(window).reshape(1, 1, 2, 2).tile(2, 19, 1, 19).contiguous(memory_format=memory_format)
    for _, dtype in itertools.product(each_isa(), DTYPES):
        output, indices = ops.max_pool2d(input.to(dtype), [2, 2], [2, 2], [0, 0], [1, 1], False)
        torch.testing.assert_close(output, torch.full_like(output, value), rtol=0, atol=0, equal_nan=True)
        row, column = divmod(index, 2)
        origins = 2 * torch.arange(19)
        assert torch.equal(indices, (row * 38 + column + origins).expand_as(indices))


def test_window_that_dilation_leaves_without_taps() -> None:
    # Taps at -1 and 2 of an input of 2: torch (2.13) returns an index beyond the plane, and its backward writes there.
    input, arguments = torch.ones(1, 1, 2, 2), [[2, 2], [1, 1], [1, 1], [3, 3], False]
    output, indices = ops.max_pool2d(input, *arguments)
    assert output.item() == -float("inf") and indices.item() == -1
    assert torch.equal(max_pool2d_backward(torch.ones(1, 1, 1, 1), indices, input, arguments), torch.zeros_like(input))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", AVG_CASES, ids=str)
def test_avg_pool2d(case: Case, dtype: torch.dtype) -> None:
    arguments = avg_arguments(case.arguments)
    (values,) = make_tensors(case, dtype, seed=4)
    size = list(values.shape[-2:])
    grad_output = random_tensor(F.avg_pool2d(values, *arguments).shape, dtype, torch.Generator().manual_seed(3))
    expected = reference("avg_pool2d", values, grad_output=grad_output, **case.arguments)
    for layout in LAYOUTS.keys() - {"expanded"}:
        input, gradient = LAYOUTS[layout](values), LAYOUTS[layout](grad_output)
        strides = F.avg_pool2d(input, *arguments).stride()
        channels_last = layout == "channels_last" and input.dim() == 4
        for isa in each_isa():
            output = ops.avg_pool2d_forward(input, *arguments)
            assert_within(output, expected.output, f"{case.label}, {layout}, {isa}")
            assert output.numel() == 0 or output.stride() == strides
            assert_same(ops.avg_pool2d(input, *arguments), output)

            grad_input = ops.avg_pool2d_backward(gradient, size, channels_last, *arguments)
            assert_within(grad_input, expected.gradients[0], f"gradient of {case.label}, {layout}, {isa}")
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            assert grad_input.is_contiguous(memory_format=memory_format)


def test_avg_pool2d_bits_do_not_depend_on_the_layout() -> None:
    input = torch.randn(2, 19, 23, 21, generator=torch.Generator().manual_seed(5))
    arguments = avg_arguments({"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False})
    expected = ops.avg_pool2d_forward(input, *arguments)
    gradient = ops.avg_pool2d_backward(expected, [23, 21], False, *arguments)
    for _, layout in itertools.product(each_isa(), ("channels_last", "transposed", "strided")):
        output = ops.avg_pool2d_forward(LAYOUTS[layout](input), *arguments)
        assert torch.equal(output, expected)
        assert torch.equal(ops.avg_pool2d_backward(output, [23, 21], True, *arguments), gradient)


def test_avg_pool2d_of_nan_and_infinity() -> None:
    input = torch.zeros(1, 9, 12, 40)
    input[0, :, 3, 5], input[0, :, 6, 7], input[0, :, 8, 30] = NAN, float("inf"), -float("inf")
    arguments = avg_arguments({"kernel_size": 3, "stride": 2, "padding": 1})
    for _, layout in itertools.product(each_isa(), ("contiguous", "channels_last")):
        output = ops.avg_pool2d_forward(LAYOUTS[layout](input), *arguments)
        torch.testing.assert_close(output, F.avg_pool2d(input, *arguments), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.randn(5, 35, 33, 31, generator=torch.Generator().manual_seed(6)).to(dtype)
    input = input.contiguous(memory_format=memory_format)
    max_args = max_arguments({"kernel_size": 3, "stride": 2, "padding": 1})
    avg_args = avg_arguments({"kernel_size": 3, "stride": 2, "padding": 1})

    def results() -> list[Tensor]:
        output, indices = ops.max_pool2d(input, *max_args)
        code = ops.max_pool2d_with_code(input, *max_args)[1]
        return [
            output,
            indices,
            code,
            max_pool2d_backward(output, indices, input, max_args),
            max_pool2d_backward(output, code, input, max_args),
            ops.avg_pool2d_forward(input, *avg_args),
            ops.avg_pool2d_backward(output, [33, 31], channels_last, *avg_args),
        ]

    threads = torch.get_num_threads()
    try:
        for _ in each_isa():
            torch.set_num_threads(1)
            expected = results()
            for count in (2, 3):
                torch.set_num_threads(count)
                assert all(torch.equal(mine, one) for mine, one in zip(results(), expected))
    finally:
        torch.set_num_threads(threads)


WINDOWS = [3, 3, 1, 1, 0, 0, 1, 1, 0]  # 8x8 to 6x6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.max_pool2d(x, [2, 2], [0, 1], [0, 0], [1, 1], False), "stride must be greater than zero"),
        (lambda x: ops.max_pool2d(x, [2, 2], [2, 2], [2, 0], [1, 1], False), "at most half of kernel size"),
        (lambda x: ops.max_pool2d(x, [2, 2], [2, 2], [-1, 0], [1, 1], False), "padding must be non-negative"),
        (lambda x: ops.max_pool2d(x, [9, 9], [1, 1], [0, 0], [1, 1], False), "output size is too small"),
        (lambda x: ops.max_pool2d(x[0, 0], [2, 2], [1, 1], [0, 0], [1, 1], False), "must be 3D .* or 4D"),
        (lambda x: ops.max_pool2d(x.int(), [2, 2], [1, 1], [0, 0], [1, 1], False), "dtype must be float32"),
        (lambda x: ops.max_pool2d_backward(x, x, [8, 8], WINDOWS), "winner must have dtype uint8 or int64"),
        (
            lambda x: ops.max_pool2d_backward(x, x[:1].long(), [8, 8], WINDOWS),
            "winner must have the shape of grad_output",
        ),
        (lambda x: ops.max_pool2d_backward(x, x.long() + 64, [8, 8], WINDOWS), "must lie in the H\\*W plane .* 8x8"),
        (lambda x: ops.max_pool2d_backward(x, x.long() - 2, [8, 8], WINDOWS), "must lie in the H\\*W plane .* 8x8"),
        (lambda x: ops.max_pool2d_backward(x, x.long(), [9, 8], WINDOWS), "end in the output size \\(7 x 6\\)"),
        (lambda x: ops.max_pool2d_backward(x, x.long(), [8, 8], [3]), "options must have 9 values"),
        (lambda x: ops.max_pool2d_forward(x, WINDOWS, 4), "winner_bytes must be 0, 1 or 8"),
        (
            lambda x: ops.max_pool2d_with_code(x.repeat(1, 1, 3, 3), [17, 15], [1, 1], [0, 0], [1, 1], False),
            "at most 254 elements, but got kernel_size=\\[17, 15\\]",
        ),
        (lambda x: ops.avg_pool2d(x, [2, 2], [2, 2], [0, 0], False, True, 0), "divisor must be not zero"),
        (
            lambda x: ops.avg_pool2d_backward(x, [8, 8], False, [2, 2], [2, 2], [0, 0], False, True, None),
            "grad_output must end in the output size \\(4 x 4\\)",
        ),
    ],
)
def test_errors_name_the_rule(call: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(torch.zeros(2, 3, 6, 6))
