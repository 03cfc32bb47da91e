"""The raw convolution ops against torch in float64, within theory's bounds, on every instruction set."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast.testing import DTYPES, LAYOUTS, Case, assert_within, cases, make_tensors, random_tensor, reference

pytestmark = pytest.mark.usefixtures("direct_sums")

ops = torch.ops.cnnfast

ISAS: list[str] = json.loads(ops.cpu_info())["supported"]
# Beyond the shared cases: reductions in several blocks, rows cut in blocks, blocks across images, weights divided.
CASES = [
    *cases("conv2d"),
    *cases("conv_transpose2d"),
    Case("two_channel_blocks", "conv2d", (2, 70, 6, 7), (13, 70, 3, 3), True, {"stride": 1, "padding": 1}),
    Case("wide_rows_dilated", "conv2d", (1, 2, 4, 1100), (3, 2, 2, 5), True, {"stride": (1, 2), "dilation": (2, 3)}),
    Case("images_in_a_block", "conv2d", (40, 20, 3, 3), (30, 20, 3, 3), True, {"stride": 2, "padding": 1}),
    Case("heavy_weight", "conv2d", (1, 150, 5, 5), (200, 150, 3, 3), True, {"stride": 1, "padding": 1}),
    Case("pointwise_across_images", "conv2d", (9, 41, 7, 7), (27, 41, 1, 1), True, {}),
    Case("pointwise_many_channels", "conv2d", (2, 530, 5, 4), (70, 530, 1, 1), True, {}),
    Case("pointwise_strided", "conv2d", (3, 17, 12, 9), (24, 17, 1, 1), True, {"stride": 2}),
    Case("many_channels_dilated_groups", "conv2d", (2, 40, 9, 14), (18, 20, 3, 2), True,
         {"stride": (2, 1), "padding": (2, 1), "dilation": (1, 2), "groups": 2}),
    Case("taps_in_blocks", "conv2d", (2, 30, 8, 8), (11, 30, 5, 5), True, {"padding": 2}),
    Case("kernel_beyond_depth", "conv2d", (1, 2, 24, 23), (3, 2, 20, 19), True, {"stride": 2}),
    Case("stride_beyond_input", "conv2d", (2, 3, 9, 8), (4, 3, 3, 2), True,
         {"stride": (1_000_003, 2**33), "padding": 1, "dilation": (2, 3)}),
    Case("depthwise_bands", "conv2d", (2, 20, 70, 61), (20, 1, 3, 3), True, {"padding": 1, "groups": 20}),
    Case("depthwise_bands_stride_2", "conv2d", (2, 9, 90, 41), (9, 1, 5, 5), True,
         {"stride": 2, "padding": 2, "groups": 9}),
    # In channels_last tasks of several registers of channels, the last of which overlaps its neighbour.
    Case("depthwise_channel_groups", "conv2d", (1, 1002, 7, 6), (1002, 1, 3, 3), True, {"padding": 1, "groups": 1002}),
    Case("depthwise_channel_groups_stride_2", "conv2d", (1, 1002, 13, 12), (1002, 1, 5, 5), True,
         {"stride": 2, "padding": 2, "groups": 1002}),
    Case("depthwise_channel_groups_7x7", "conv2d", (1, 402, 6, 7), (402, 1, 7, 7), True,
         {"padding": 3, "groups": 402}),
    Case("depthwise_planes_5x5", "conv2d", (2, 9, 9, 43), (9, 1, 5, 5), True, {"padding": 2, "groups": 9}),
    Case("depthwise_planes_7x7_stride_2", "conv2d", (1, 18, 23, 47), (18, 1, 7, 7), True,
         {"stride": 2, "padding": 3, "groups": 18}),
    Case("depthwise_planes_3x5_stride_2", "conv2d", (3, 9, 6, 70), (9, 1, 3, 5), False,
         {"stride": 2, "padding": (0, 6), "groups": 9}),
    Case("depthwise_slices", "conv2d", (19, 16, 14, 14), (16, 1, 3, 3), True,
         {"stride": 2, "padding": 1, "groups": 16}),
    Case("depthwise_7x3_stride_2_1", "conv2d", (1, 12, 12, 9), (12, 1, 7, 3), True,
         {"stride": (2, 1), "padding": (3, 0), "groups": 12}),
    Case("depthwise_5x7_wide_padding", "conv2d", (2, 11, 4, 5), (11, 1, 5, 7), False,
         {"stride": (1, 2), "padding": (6, 9), "groups": 11}),
    Case("depthwise_same", "conv2d", (1, 33, 8, 7), (33, 1, 3, 5), True, {"padding": "same", "groups": 33}),
    Case("depthwise_unread_input", "conv2d", (2, 8, 8, 10), (8, 1, 3, 3), False, {"stride": 2, "groups": 8}),
    Case("depthwise_one_pixel", "conv2d", (1, 24, 1, 1), (24, 1, 3, 3), True,
         {"stride": 2, "padding": 1, "groups": 24}),
    Case("depthwise", "conv_transpose2d", (2, 18, 6, 5), (18, 1, 3, 3), True,
         {"stride": 2, "padding": 1, "output_padding": 1, "groups": 18, "dilation": 1}),
    Case("copied_to_channels_last", "conv2d", (3, 97, 9, 11), (131, 97, 3, 3), True, {"stride": 2, "padding": 1}),
    Case("copied_to_channels_last", "conv_transpose2d", (2, 130, 5, 6), (130, 95, 3, 3), True,
         {"stride": 2, "padding": 1, "output_padding": 1, "groups": 1, "dilation": 1}),
    Case("rows_beyond_first_layers", "conv2d", (1, 1, 2, 12_000), (16, 1, 2, 3), True, {"stride": 1}),
    Case("no_pixel", "conv_transpose2d", (0, 3, 0, 8), (3, 4, 3, 3), True,
         {"stride": 1, "padding": 1, "output_padding": 0, "groups": 1, "dilation": 1}),
    Case("classes_without_tap", "conv_transpose2d", (2, 5, 4, 3), (5, 6, 2, 1), True,
         {"stride": (4, 3), "output_padding": (3, 2), "groups": 1, "dilation": (2, 1)}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def keep_settings() -> Iterator[None]:
    isa, threads = json.loads(ops.cpu_info())["isa"], torch.get_num_threads()
    yield
    ops.set_cpu_isa(isa)
    torch.set_num_threads(threads)


def pair(value: int | tuple[int, int]) -> list[int | bool]:
    return [value, value] if isinstance(value, int) else list(value)


def options_of(case: Case) -> list[int | bool]:
    """The raw op's options."""
    a = case.arguments
    stride, dilation, groups = pair(a.get("stride", 1)), pair(a.get("dilation", 1)), a.get("groups", 1)
    padding = a.get("padding", 0)
    if case.op == "conv_transpose2d":
        return [*stride, *pair(padding), *pair(a.get("output_padding", 0)), groups, *dilation, False]
    assert case.weight is not None
    if padding == "same":
        total = [d * (kernel - 1) for d, kernel in zip(dilation, case.weight[2:])]
        sides = [side for t in total for side in (t // 2, t - t // 2)]
    else:
        sides = [side for p in pair(0 if padding == "valid" else padding) for side in (p, p)]
    return [*stride, *sides, *dilation, groups, False]


def run(case: Case, tensors: tuple[Tensor, ...], grad_output: Tensor) -> list[Tensor]:
    """Output and the gradients of the given tensors."""
    input, weight = tensors[:2]
    bias = tensors[2] if len(tensors) == 3 else None
    options = options_of(case)
    relu = [False] if case.op == "conv2d" else []
    output = getattr(ops, f"{case.op}_forward")(input, weight, bias, options, *relu)
    mask = [True, True, bias is not None]
    gradients = getattr(ops, f"{case.op}_backward")(grad_output, input, weight, options, mask)
    assert [g is not None for g in gradients] == mask
    return [output, *(g for g in gradients if g is not None)]


def check(case: Case, dtype: torch.dtype, isa: str, layout: str, weight_layout: str, grad_layout: str) -> None:
    assert ops.set_cpu_isa(isa)
    tensors = make_tensors(case, dtype, seed=1, layout=layout, weight_layout=weight_layout)
    shape = getattr(F, case.op)(*(t.to("meta") for t in tensors), **case.arguments).shape
    generator = torch.Generator().manual_seed(2)
    grad_output = LAYOUTS[grad_layout](random_tensor(shape, dtype, generator))
    expected = reference(case.op, *tensors, grad_output=grad_output, **case.arguments)
    torch.set_num_threads(1)
    results = run(case, tensors, grad_output)
    names = ["output", "grad_input", "grad_weight", "grad_bias"]
    for name, actual, bound in zip(names, results, [expected.output, *expected.gradients], strict=False):
        assert actual.dtype == dtype
        assert_within(actual, bound, f"{case} {name}")
    torch.set_num_threads(2)
    for name, one, two in zip(names, results, run(case, tensors, grad_output), strict=False):
        assert torch.equal(one, two), f"{case} {name} differs between 1 and 2 threads"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(case: Case, isa: str) -> None:
    check(case, torch.float32, isa, "contiguous", "contiguous", "contiguous")
    check(case, torch.float32, isa, "channels_last", "contiguous", "channels_last")
    check(case, torch.float32, isa, "channels_last", "contiguous", "contiguous")
    check(case, torch.float64, isa, "channels_last", "contiguous", "channels_last")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [(8, 8), (40, 24), (96, 17), (300, 72)], ids=str)
def test_pointwise_integers(channels: tuple[int, int], layout: str, isa: str) -> None:
    """Small integers are exact whatever the order of sums; blocks of pixels end within rows and images."""
    assert ops.set_cpu_isa(isa)
    generator = torch.Generator().manual_seed(5)
    c, k = channels

    def integers(*shape: int) -> Tensor:
        return LAYOUTS[layout](torch.randint(-3, 4, shape, generator=generator).float())

    input, weight, grad_output = integers(5, c, 11, 9), integers(k, c, 1, 1), integers(5, k, 11, 9)
    bias = torch.arange(k) - 4.0
    options = [1, 1, 0, 0, 0, 0, 1, 1, 1, False]
    expected = torch.einsum("nchw,kc->nkhw", input, weight[:, :, 0, 0]) + bias[:, None, None]
    assert torch.equal(ops.conv2d_forward(input, weight, bias, options, 0), expected)
    assert torch.equal(ops.conv2d_forward(input, weight, bias, options, 1), expected.relu())
    grad_input, grad_weight, _ = ops.conv2d_backward(grad_output, input, weight, options, [True, True, False])
    assert torch.equal(grad_input, torch.einsum("nkhw,kc->nchw", grad_output, weight[:, :, 0, 0]))
    assert torch.equal(grad_weight[:, :, 0, 0], torch.einsum("nkhw,nchw->kc", grad_output, input))


SMALL = [c for c in CASES if c.label in ("lopsided", "groups", "7x7_stride_2", "depthwise", "depthwise_bands_stride_2")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_layouts_and_dtypes(case: Case, layout: str, dtype: torch.dtype) -> None:
    for isa in ISAS:
        check(case, dtype, isa, layout, "sliced" if layout == "contiguous" else layout, layout)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", [c for c in CASES if c.label.startswith("depthwise") and c.op == "conv2d"], ids=str)
def test_depthwise_of_some_channels(case: Case, isa: str) -> None:
    """Pixels of channels_last that lie further apart than the channels are wide, with NaN between them."""
    assert ops.set_cpu_isa(isa)
    integers = [t.contiguous() for t in make_tensors(case, torch.float32, seed=1, integers=True)]

    def among_others(tensor: Tensor) -> Tensor:
        n, c, h, w = tensor.shape
        wider = torch.full((n, c + 21, h, w), float("nan")).contiguous(memory_format=torch.channels_last)
        return wider[:, 5 : 5 + c].copy_(tensor)

    shape = getattr(F, case.op)(*(t.to("meta") for t in integers), **case.arguments).shape
    grad_output = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(2)).float()
    apart = (among_others(integers[0]), *integers[1:])
    for a, b in zip(run(case, apart, among_others(grad_output)), run(case, (*integers,), grad_output), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
def test_relu_keeps_nan(isa: str) -> None:
    assert ops.set_cpu_isa(isa)
    input = torch.randn(2, 3, 6, 20, generator=torch.Generator().manual_seed(3))
    input[0, 1, 2, 3] = float("nan")
    weight = torch.randn(7, 3, 1, 1, generator=torch.Generator().manual_seed(4))
    arguments = ([1, 1], [0, 0, 0, 0], [1, 1], 1)
    plain = ops.conv2d(input, weight, None, *arguments)
    assert plain.isnan().sum() == 7
    clipped = ops.conv2d_relu(input, weight, None, *arguments)
    torch.testing.assert_close(clipped, plain.relu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("isa", ISAS)
def test_relu6(isa: str, layout: str, dtype: torch.dtype) -> None:
    """The convolution's own sums, clipped to [0, 6]; NaN stays."""
    ops.set_cpu_isa(isa)
    for case in [case for case in CASES if case.op == "conv2d"]:
        input, weight, bias = [*make_tensors(case, dtype, seed=5), None][:3]
        if input.numel():
            input.view(-1)[0] = torch.nan
        input = LAYOUTS[layout](input)
        plain, clipped = (
            ops.conv2d_forward(input, weight, bias, options_of(case), activation) for activation in (0, 2)
        )
        torch.testing.assert_close(clipped, F.relu6(plain), rtol=0, atol=0, equal_nan=True)


def test_images_copied_in_parts() -> None:
    """More images than are copied to channels_last at a time: small integers, exactly."""
    generator = torch.Generator().manual_seed(8)
    input = torch.randint(-3, 4, (225, 64, 14, 14), generator=generator).float()
    weight = torch.randint(-3, 4, (128, 64, 3, 3), generator=generator).float()
    options = [2, 2, 1, 1, 1, 1, 1, 1, 1, 0]
    expected = F.conv2d(input, weight, stride=2, padding=1)
    assert torch.equal(ops.conv2d_forward(input, weight, None, options, 0), expected)
    given = torch.randint(-3, 4, expected.shape, generator=generator).float()
    grad_input = ops.conv2d_backward(given, input, weight, options, [True, False, False])[0]
    assert torch.equal(grad_input, torch.nn.grad.conv2d_input(input.shape, weight, given, stride=2, padding=1))


def test_activation_is_checked() -> None:
    input, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1)
    with pytest.raises(RuntimeError, match="conv2d_forward: activation must be 0 .* but got activation=5"):
        ops.conv2d_forward(input, weight, None, [1, 1, 0, 0, 0, 0, 1, 1, 1, 0], 5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("isa", ISAS)
def test_depthwise_keeps_to_its_channel(isa: str, layout: str) -> None:
    """A NaN reaches what torch lets it reach: neither neighbouring channels nor, in gradients, windows beside it."""
    assert ops.set_cpu_isa(isa)
    case = Case("nan", "conv2d_relu", (2, 20, 9, 11), (20, 1, 3, 3), True, {"stride": 2, "padding": 1, "groups": 20})
    input, weight, bias = make_tensors(case, torch.float32, seed=5, layout=layout)
    input[1, 3, 4, 10], input[0, 19, 8, 0] = float("nan"), float("inf")
    expected = F.conv2d(input, weight, bias, stride=2, padding=1, groups=20).relu()
    output = ops.conv2d_forward(input, weight, bias, options_of(case), 1)
    torch.testing.assert_close(output, expected, equal_nan=True)
    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(6))
    clipped = torch.where(expected <= 0, 0, grad_output)
    mask = [True, True, True]
    gradients = ops.conv2d_relu_backward(grad_output, output, input, weight, options_of(case), mask)
    backward = torch.ops.aten.convolution_backward
    references = backward(clipped, input, weight, [20], [2, 2], [1, 1], [1, 1], False, [0, 0], 20, mask)
    for actual, reference_gradient in zip(gradients, references):
        torch.testing.assert_close(actual, reference_gradient, equal_nan=True)


@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("input_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_memory_format(op: str, input_format: torch.memory_format, weight_format: torch.memory_format) -> None:
    case = Case("formats", op, (2, 4, 6, 5), (4, 4, 3, 2))
    tensors = [
        t.to(memory_format=f).requires_grad_()
        for t, f in zip(make_tensors(case, torch.float64, seed=0), (input_format, weight_format))
    ]
    output = getattr(F, op)(*tensors)
    expected = [output, *torch.autograd.grad(output, tensors, torch.ones_like(output))]
    for actual, like in zip(run(case, tuple(t.detach() for t in tensors), torch.ones_like(output)), expected):
        assert actual.stride() == like.stride()


def test_output_mask() -> None:
    input, weight = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3)
    grad_output = torch.ones(1, 3, 2, 2)
    for wanted in range(3):
        mask = [i == wanted for i in range(3)]
        gradients = ops.conv2d_backward(grad_output, input, weight, [1, 1, 0, 0, 0, 0, 1, 1, 1, 0], mask)
        assert [g is not None for g in gradients] == mask
    with pytest.raises(RuntimeError, match="conv2d_backward: output_mask must have 3 values, but got 2"):
        ops.conv2d_backward(grad_output, input, weight, [1, 1, 0, 0, 0, 0, 1, 1, 1, 0], [True, True])


def test_relu_backward_arguments() -> None:
    input, weight = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3)
    grad_output = torch.ones(1, 3, 2, 2)
    options, mask = [1, 1, 0, 0, 0, 0, 1, 1, 1, 0], [True] * 3
    for output, message in (
        (torch.ones(1, 3, 2, 1), r"output must have the shape of grad_output, but got output.shape=\[1, 3, 2, 1\]"),
        (grad_output.double(), r"output must have the dtype of input .*output.dtype=Double"),
    ):
        with pytest.raises(RuntimeError, match="conv2d_relu_backward: " + message):
            ops.conv2d_relu_backward(grad_output, output, input, weight, options, mask)
    with pytest.raises(RuntimeError, match="conv2d_relu_backward: grad_output must have"):
        ops.conv2d_relu_backward(torch.ones(1, 3, 2, 1), torch.ones(1, 3, 2, 1), input, weight, options, mask)
    with pytest.raises(RuntimeError, match="conv2d_relu_backward: options must have 10 values, but got options="):
        ops.conv2d_relu_backward(grad_output, grad_output, input, weight, [1], mask)
