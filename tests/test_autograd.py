"""Gradients of the functionals: right, of second order too, for any grad_output, and cheap in what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_calls import CALLS, Call, one_of_each
from torch import Tensor

import cnnfast.functional as CF

every_call = pytest.mark.parametrize("call", CALLS, ids=str)
every_op = pytest.mark.parametrize("call", one_of_each(), ids=str)


@every_call
def test_first_and_second_derivatives(call: Call) -> None:
    tensors = call.tensors()
    # fast_mode: along random directions instead of element by element; seconds instead of minutes.
    assert torch.autograd.gradcheck(call.ours, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call.ours, tensors, fast_mode=True)


@every_call
def test_gradients_equal_torch(call: Call) -> None:
    tensors = [tensor for tensor in call.tensors() if tensor is not None]
    arguments = iter(tensors)
    given = [None if shape is None else next(arguments) for shape in call.shapes]
    ours, theirs = call.ours(*given), call.theirs(*given)
    torch.testing.assert_close(ours, theirs)
    grad_output = torch.randn_like(theirs)
    ours_first = torch.autograd.grad(ours, tensors, grad_output, create_graph=True)
    theirs_first = torch.autograd.grad(theirs, tensors, grad_output, create_graph=True)
    torch.testing.assert_close(ours_first, theirs_first)
    # Without create_graph other formulas run.
    torch.testing.assert_close(torch.autograd.grad(call.ours(*given), tensors, grad_output), theirs_first)


def _strided(grad: Tensor) -> Tensor:
    wide = torch.zeros(*grad.shape[:-1], 2 * grad.shape[-1], dtype=grad.dtype)
    wide[..., ::2] = grad
    return wide[..., ::2]


@every_op
@pytest.mark.parametrize("layout", ["expanded", "strided", "transposed", "channels_last"])
def test_grad_output_of_any_layout(call: Call, layout: str) -> None:
    tensors = call.tensors()
    output = call.ours(*tensors)
    if layout == "channels_last" and output.dim() != 4:
        pytest.skip("channels_last is a layout of 4 dimensions")
    grad_output = {
        "expanded": lambda: torch.tensor(0.5, dtype=output.dtype).expand(output.shape),
        "strided": lambda: _strided(torch.randn_like(output)),
        "transposed": lambda: torch.randn_like(output).mT.contiguous().mT,
        "channels_last": lambda: torch.randn_like(output).contiguous(memory_format=torch.channels_last),
    }[layout]()
    actual = torch.autograd.grad(output, tensors, grad_output)
    expected = torch.autograd.grad(call.theirs(*tensors), tensors, grad_output.contiguous())
    torch.testing.assert_close(actual, expected)


@every_op
def test_only_wanted_gradients(call: Call) -> None:
    count = len(call.shapes)
    for wanted in range(1, 2**count):
        tensors = [t.detach().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(call.tensors())]
        call.ours(*tensors).sum().backward()
        leaves = [t.detach().requires_grad_() for t in tensors]
        call.theirs(*leaves).sum().backward()
        for tensor, leaf in zip(tensors, leaves):
            assert (tensor.grad is not None) == tensor.requires_grad
            if tensor.requires_grad:
                torch.testing.assert_close(tensor.grad, leaf.grad)


@every_op
def test_double_backward_with_a_frozen_weight(call: Call) -> None:
    input, *rest = call.tensors()
    rest = [t.detach() for t in rest]
    assert torch.autograd.gradgradcheck(lambda input: call.ours(input, *rest), (input,), fast_mode=True)


def _kept(call: Call, tensors: list[Any]) -> list[Tensor]:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call.ours(*tensors)
    return kept


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("conv2d", ["input", "weight"]),
        ("conv2d_relu", ["input", "weight", "output"]),
        ("conv2d_relu_max_pool2d", ["input", "weight", "code"]),
        ("conv_transpose2d", ["input", "weight"]),
        ("relu", ["output"]),
        ("max_pool2d", ["indices"]),
        ("max_pool2d_with_code", ["code"]),
        ("avg_pool2d", []),
    ],
)
def test_what_is_kept_for_backward(op: str, expected: list[str]) -> None:
    call = next(call for call in CALLS if call.op == op)
    tensors = call.tensors()
    output = call.ours(*tensors)
    kinds = {
        "input": (tensors[0].shape, tensors[0].dtype),
        "weight": (tensors[-2 if len(tensors) > 1 else 0].shape, tensors[0].dtype),
        "output": (output.shape, output.dtype),
        "code": (output.shape, torch.uint8),
        "indices": (output.shape, torch.int64),
    }
    assert [(t.shape, t.dtype) for t in _kept(call, tensors)] == [kinds[name] for name in expected]


def test_a_frozen_weight_keeps_no_input() -> None:
    call = next(call for call in CALLS if call.op == "conv2d")
    input, weight, bias = call.tensors()
    kept = _kept(call, [input, weight.detach(), bias.detach()])
    assert kept[0].shape == input.shape
    assert kept[0].untyped_storage().nbytes() == input.element_size()


def test_without_gradient_nothing_is_recorded() -> None:
    for call in one_of_each():
        tensors = call.tensors()
        with torch.no_grad():
            assert call.ours(*tensors).grad_fn is None
        assert call.ours(*(t.detach() for t in tensors)).grad_fn is None
        with torch.inference_mode():
            assert call.ours(*tensors).is_inference()


@pytest.mark.parametrize("return_indices", [False, True])
def test_max_pool2d_indices(return_indices: bool) -> None:
    input = torch.randn(2, 3, 7, 7, requires_grad=True)
    result = CF.max_pool2d(input, 3, 2, return_indices=return_indices)
    output, indices = torch.nn.functional.max_pool2d(input, 3, 2, return_indices=True)
    if return_indices:
        assert not result[1].requires_grad
        assert torch.equal(result[1], indices)
        result = result[0]
    assert torch.equal(result, output)


def test_relu_inplace_is_torchs() -> None:
    leaf = torch.randn(5, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        CF.relu(leaf, inplace=True)
    middle = leaf * 1
    version = middle._version
    result = CF.relu(middle, True)
    assert result is middle
    assert middle._version == version + 1
    result.sum().backward()
    assert torch.equal(leaf.grad, (leaf > 0).float())


def test_an_input_changed_before_backward_is_noticed() -> None:
    call = next(call for call in CALLS if call.op == "conv2d")
    input, weight, bias = call.tensors()
    changed = input * 1
    output = call.ours(changed, weight, bias)
    changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
