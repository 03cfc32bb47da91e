"""The tolerance rule itself: tight enough to catch small mistakes, wide enough for a correct result."""

from __future__ import annotations

import pytest
import torch
from calls import theirs

from cnnfast.testing import CASES, LAYOUTS, Case, assert_within, cases, make_tensors, reference, worst_error


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_float32_keeps_within_the_bound(case: Case) -> None:
    tensors = make_tensors(case, torch.float32, seed=1)
    expected = reference(case.op, *tensors, **case.arguments)
    assert_within(theirs(case.op, *tensors, **case.arguments), expected.output, str(case))


def test_gradients_of_torch_float32_keep_within_the_bound() -> None:
    for case in cases("conv2d"):
        tensors = [t.requires_grad_() for t in make_tensors(case, torch.float32, seed=2)]
        output = theirs(case.op, *tensors, **case.arguments)
        grad_output = torch.randn_like(output)
        expected = reference(case.op, *tensors, grad_output=grad_output, **case.arguments)
        for actual, gradient in zip(torch.autograd.grad(output, tensors, grad_output), expected.gradients):
            assert_within(actual, gradient, str(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_term_too_many_is_out_of_bounds(dtype: torch.dtype) -> None:
    case = next(case for case in cases("conv2d") if case.label == "lecture_layer_2")
    input, weight, bias = make_tensors(case, dtype, seed=3)
    expected = reference("conv2d", input, weight, bias, padding=1)
    wrong = expected.output.value.to(dtype, copy=True)
    assert worst_error(wrong, expected.output) <= 1
    # One product of 108 added twice, at one element.
    wrong[1, 2, 5, 5] += input[1, 0, 5, 5] * weight[2, 0, 1, 1]
    with pytest.raises(AssertionError, match=r"wrong: 1 of \d+ elements .* the worst, at \(1, 2, 5, 5\)"):
        assert_within(wrong, expected.output, "wrong")


def test_nan_and_infinity_are_errors_unless_expected() -> None:
    expected = reference("relu", torch.tensor([1.0, float("nan"), float("inf")]))
    assert worst_error(torch.tensor([1.0, float("nan"), float("inf")]), expected.output) == 0
    for i in range(3):
        actual = torch.tensor([1.0, float("nan"), float("inf")])
        actual[i] = float("nan") if i != 1 else 0.0
        assert worst_error(actual, expected.output) == float("inf")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_keeps_shape_and_values(layout: str) -> None:
    for tensor in (torch.randn(2, 3, 4, 5), torch.randn(3, 4, 5)):
        laid_out = LAYOUTS[layout](tensor)
        assert laid_out.shape == tensor.shape
        if layout == "expanded":
            assert laid_out.stride(-3) == 0
        else:
            assert torch.equal(laid_out, tensor)
            # Without a batch, there is nothing to put innermost.
            contiguous = layout == "contiguous" or (layout == "batch_innermost" and tensor.dim() == 3)
            assert laid_out.is_contiguous() == contiguous
