"""Small integers, on which every sum is exact (that of Winograd F(2x2, 3x3), too: it halves twice at most): results
must equal the reference's to the last bit.

Which element wins a tie, and that ReLU passes no gradient at 0, is part of that: integers tie often.
"""

from __future__ import annotations

import functools

import pytest
import torch
from calls import forward_backward, ours

from cnnfast.testing import CASES, DTYPES, LAYOUTS, Case, Reference, cases, make_tensors, random_tensor, reference

pytestmark = pytest.mark.usefixtures("direct_sums")


def _is_exact(case: Case) -> bool:
    # Thirds and sevenths are not.
    return case.op != "avg_pool2d" or case.arguments["kernel_size"] in (1, 2)


EXACT = [case for case in CASES if _is_exact(case)]


def _grad_output(case: Case, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return random_tensor(shape, dtype, torch.Generator().manual_seed(9), integers=True)


@functools.lru_cache(maxsize=1)
def _reference(case_id: str) -> Reference:
    """Output and gradients, the same for every dtype and instruction set."""
    case = next(case for case in CASES if str(case) == case_id)
    tensors = make_tensors(case, torch.float64, seed=8, integers=True)
    shape = reference(case.op, *tensors, **case.arguments).output.value.shape
    return reference(case.op, *tensors, grad_output=_grad_output(case, shape, torch.float64), **case.arguments)


def _check(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    expected = _reference(str(case))
    tensors = make_tensors(case, dtype, seed=8, integers=True)
    grad_output = _grad_output(case, expected.output.value.shape, dtype)
    output, gradients = forward_backward(case.op, tensors, case.arguments, grad_output, device)
    inferred = ours(case.op, *(t.to(device) for t in tensors), **case.arguments)
    for actual in (output, inferred):
        assert actual.dtype == dtype
        assert torch.equal(actual.cpu(), expected.output.value.to(dtype)), f"output of {case} in {dtype}"
    assert len(gradients) == len(expected.gradients)
    for i, (actual, gradient) in enumerate(zip(gradients, expected.gradients)):
        assert torch.equal(actual.cpu(), gradient.value.to(dtype)), f"gradient {i} of {case} in {dtype}"


# The case varies slowest, so that its reference is computed once.
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_every_instruction_set_is_exact(case: Case, isa: str, device: torch.device) -> None:
    for dtype in DTYPES:
        _check(case, dtype, device)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "expanded"])
@pytest.mark.parametrize("op", ["conv2d", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_pool2d", "avg_pool2d"])
def test_layouts_are_exact(op: str, layout: str, device: torch.device) -> None:
    for case in filter(_is_exact, cases(op)):
        if "lecture_" in case.label or "many" in case.label:
            continue
        tensors = make_tensors(case, torch.float32, seed=8, integers=True)
        laid_out = make_tensors(case, torch.float32, seed=8, integers=True, layout=layout, weight_layout=layout)
        shape = ours(op, *(t.to(device) for t in tensors), **case.arguments).shape
        grad_output = _grad_output(case, shape, torch.float32)
        output, gradients = forward_backward(op, tensors, case.arguments, grad_output, device)
        actual, actual_gradients = forward_backward(op, laid_out, case.arguments, LAYOUTS[layout](grad_output), device)
        assert torch.equal(actual, output), f"output of {case}"
        for i, (a, b) in enumerate(zip(actual_gradients, gradients)):
            assert torch.equal(a, b), f"gradient {i} of {case}"


def test_default_dtype_changes_nothing(device: torch.device) -> None:
    default = torch.get_default_dtype()
    case = next(case for case in cases("conv2d_relu_max_pool2d") if case.label == "lopsided")
    expected = _reference(str(case))
    try:
        for other in (torch.float64, torch.float16):
            torch.set_default_dtype(other)
            _check(case, torch.float32, device)
    finally:
        torch.set_default_dtype(default)
    assert expected.output.value.dtype == torch.float64


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("op", ["conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "conv_transpose2d"])
def test_each_gradient_alone(op: str, wanted: tuple[int, int, int], device: torch.device) -> None:
    case = next(case for case in cases(op) if case.label == "groups")
    expected = _reference(str(case))
    tensors = make_tensors(case, torch.float32, seed=8, integers=True)
    grad_output = _grad_output(case, expected.output.value.shape, torch.float32)
    _, gradients = forward_backward(op, tensors, case.arguments, grad_output, device, [bool(w) for w in wanted])
    kept = [g for g, w in zip(expected.gradients, wanted) if w]
    assert len(gradients) == len(kept)
    for actual, gradient in zip(gradients, kept):
        assert torch.equal(actual.cpu(), gradient.value.float())
