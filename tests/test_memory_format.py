"""Outputs and gradients have the strides that torch gives them, whatever the layouts of what goes in."""

from __future__ import annotations

import pytest
import torch
from calls import leaves_of, ours, theirs

from cnnfast.testing import LAYOUTS, OPS, Case, assert_within, cases, make_tensors, random_tensor, reference

LABELS = (
    "lopsided",
    "groups",
    "1x1",
    "unbatched",
    "odd_size",
    "3x3",
    "dilated",
    "tail",
    "channels_below_8_lanes",
    "global",
)
CHOSEN = [case for op in OPS for case in cases(op) if case.label in LABELS]


def _format(tensor: torch.Tensor) -> object:
    """Its memory format, or its strides if it has none of the two: strides of size-1 dimensions mean nothing."""
    formats = [torch.contiguous_format] + [torch.channels_last] * (tensor.dim() == 4)
    matching = [f for f in formats if tensor.is_contiguous(memory_format=f)]
    return matching or tensor.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_strides_are_torchs(case: Case, layout: str, device: torch.device) -> None:
    for weight_layout in ("contiguous", "channels_last") if case.weight else ("contiguous",):
        tensors = make_tensors(case, torch.float32, 4, layout=layout, weight_layout=weight_layout)
        mine, torchs = leaves_of(tensors, device), leaves_of(tensors, device)
        output, expected = ours(case.op, *mine, **case.arguments), theirs(case.op, *torchs, **case.arguments)
        assert _format(output) == _format(expected), f"output, {weight_layout} weight"
        grad_output = torch.ones_like(expected)
        for create_graph in (True, False):
            gradients, torchs_gradients = (
                torch.autograd.grad(result, leaves, grad_output, retain_graph=True, create_graph=create_graph)
                for result, leaves in ((output, mine), (expected, torchs))
            )
            for i, (actual, gradient) in enumerate(zip(gradients, torchs_gradients)):
                where = f"gradient {i}, {weight_layout} weight, create_graph={create_graph}"
                assert _format(actual) == _format(gradient), where


@pytest.mark.parametrize("op", ["conv2d", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_pool2d", "avg_pool2d"])
def test_strides_of_an_empty_batch_are_torchs(op: str, device: torch.device) -> None:
    (case,) = (case for case in cases(op) if case.label == "empty_batch")
    for layout in ("contiguous", "channels_last"):
        tensors = [t.to(device) for t in make_tensors(case, torch.float32, 4, layout=layout)]
        output, expected = ours(op, *tensors, **case.arguments), theirs(op, *tensors, **case.arguments)
        assert output.shape == expected.shape
        assert output.stride() == expected.stride()


@pytest.mark.parametrize("grad_layout", [*LAYOUTS, "scalar"])
@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_any_layout_of_grad_output(case: Case, grad_layout: str, device: torch.device) -> None:
    """`scalar` is what output.sum().backward() hands over: one element, expanded."""
    for layout in ("contiguous", "channels_last"):
        tensors = make_tensors(case, torch.float32, 4, integers=True, layout=layout)
        leaves = leaves_of(tensors, device)
        output = ours(case.op, *leaves, **case.arguments)
        if grad_layout == "scalar":
            grad_output = torch.tensor(0.7).expand(output.shape)
        else:
            generator = torch.Generator().manual_seed(3)
            grad_output = LAYOUTS[grad_layout](random_tensor(output.shape, torch.float32, generator))
        expected = reference(case.op, *tensors, grad_output=grad_output, **case.arguments)
        before = grad_output.clone()
        gradients = torch.autograd.grad(output, leaves, grad_output.to(device))
        assert torch.equal(grad_output, before)
        for i, (actual, gradient) in enumerate(zip(gradients, expected.gradients)):
            assert_within(actual.cpu(), gradient, f"gradient {i} of {case}, {layout} input")
