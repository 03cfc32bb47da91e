"""The public ops in torch's ops: the kernels' results, and where torch finds them."""

from __future__ import annotations

import pytest
import torch
from small_calls import CALLS, Call

import cnnfast
from cnnfast.autograd import PUBLIC
from cnnfast.decomposition import DECOMPOSITIONS


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_all_results(call: Call) -> None:
    """Codes and indices, too."""
    tensors = call.tensors()
    arguments = call.public_arguments(*tensors)
    expected, actual = PUBLIC[call.op](*arguments), DECOMPOSITIONS[call.op](*arguments)
    torch.testing.assert_close(actual, expected)
    first, second = (result[0] if isinstance(result, tuple) else result for result in (actual, expected))
    leaves, grad_output = [tensor for tensor in tensors if tensor is not None], torch.randn_like(first)
    torch.testing.assert_close(
        torch.autograd.grad(first, leaves, grad_output), torch.autograd.grad(second, leaves, grad_output)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_codes_of_extreme_values(value: float) -> None:
    input = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    input[..., 2:4, 2:4] = value
    call = Call("conv2d_relu_max_pool2d", ((1, 1, 6, 6), (1, 1, 1, 1), None), {"pool_kernel_size": (2, 3)})
    arguments = call.public_arguments(input, torch.ones(1, 1, 1, 1), None)
    expected, actual = PUBLIC[call.op](*arguments), DECOMPOSITIONS[call.op](*arguments)
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_asked_for() -> None:
    assert set(cnnfast.decompositions()) == set(PUBLIC.values())
    cnnfast.decompositions().clear()  # the caller's own
    assert set(cnnfast.decompositions()) == set(PUBLIC.values())
    # Where CI is set, inductor refuses to call what is in torch's own table (test_compile.py's test of it).
    assert not set(PUBLIC.values()) & set(torch._decomp.decomposition_table)
    assert not set(PUBLIC.values()) & set(torch.export.default_decompositions())
