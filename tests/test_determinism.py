"""Bits depend on the shape alone: not on the run, nor on the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from calls import forward_backward, ours

from cnnfast.testing import CASES, Case, cases, make_tensors

LECTURE_LAYERS = [
    case
    for op in ("conv2d", "conv2d_relu", "conv2d_relu_max_pool2d")
    for case in cases(op)
    if case.label in ("lecture_layer_1", "lecture_layer_2")
] + [case for op in ("max_pool2d", "avg_pool2d") for case in cases(op) if case.label == "lecture_pool_1"]
GENERAL = [case for case in CASES if case not in LECTURE_LAYERS]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _results(case: Case, dtype: torch.dtype, batch: int | None, device: torch.device) -> list[torch.Tensor]:
    if batch is not None:
        case = Case(case.label, case.op, (batch, *case.input[1:]), case.weight, case.bias, case.arguments)
    tensors = make_tensors(case, dtype, seed=5)
    with torch.no_grad():
        output = ours(case.op, *(t.to(device) for t in tensors), **case.arguments)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(6)).to(dtype)
    with_gradient, gradients = forward_backward(case.op, tensors, case.arguments, grad_output, device)
    return [output, with_gradient, *gradients]  # not equal: inference may take another algorithm


def _check(case: Case, dtype: torch.dtype, batch: int | None, device: torch.device) -> None:
    torch.set_num_threads(1)
    expected = _results(case, dtype, batch, device)
    for threads in (2, 2, 3, 1):
        torch.set_num_threads(threads)
        for i, (actual, first) in enumerate(zip(_results(case, dtype, batch, device), expected)):
            what = ("inferred output", "output")[i] if i < 2 else f"gradient {i - 2}"
            assert torch.equal(actual, first), f"{what} of {case} in {dtype}, batch {batch}, {threads} threads"


@pytest.mark.parametrize("batch", [1, 3, 17, 65])
@pytest.mark.parametrize("case", LECTURE_LAYERS, ids=str)
def test_lecture_layers(case: Case, batch: int, device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _check(case, dtype, batch, device)


@pytest.mark.parametrize("case", GENERAL, ids=str)
def test_general_shapes(case: Case, device: torch.device) -> None:
    _check(case, torch.float32, None, device)
