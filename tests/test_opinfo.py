"""torch's own sample and error inputs (OpInfo) of the ops that cnnfast has, through cnnfast.functional."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_calls import public_arguments
from torch import Tensor

import cnnfast.functional
from cnnfast.autograd import PUBLIC
from cnnfast.testing import DTYPES, assert_within, reference

# Private to torch, so it may move; the reason for a skip then says so.
common_methods_invocations = pytest.importorskip(
    "torch.testing._internal.common_methods_invocations", exc_type=ImportError
)

OPINFOS = {
    name: next(op for op in common_methods_invocations.op_db if op.name == f"nn.functional.{name}")
    for name in ("conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "relu")
}
# max_pool2d has 1,440 samples, which the other dtypes share with these two.
OP_DTYPES = [
    pytest.param(
        op, dtype,
        marks=[pytest.mark.long] if op == "max_pool2d" and dtype not in (torch.float32, torch.bfloat16) else [],
    )
    for op, info in OPINFOS.items()
    for dtype in sorted(info.supported_dtypes("cpu"), key=str)
]  # fmt: skip

# Why torch refuses (the pattern of its error) -> how cnnfast says it: the same rule in its own form.
RULES = {
    "should be the same": r"expected the same dtype|should be the same",
    "non-positive stride is not supported": r"stride must be greater than zero, but got stride=\[-1, -1\]",
    "negative padding is not supported": r"negative padding is not supported\), but got padding=\[-1, -1",
    "dilation should be greater than zero": r"dilation must be greater than zero, but got dilation=\[-1, -1\]",
    "Expected 3-dimensional input for 3-dimensional weight": r"weight must have 4 dimensions .*=\[1, 2, 2\]",
    "expected weight to be at least 3 at dimension 0": r"groups=3",
    "non-positive groups is not supported": r"groups must be greater than zero, but got groups=(-1|0)",
    "pad must be non-negative": r"padding must be non-negative .*, but got padding=\[-1, -1\]",
    "pad should be at most half of effective kernel size": r"padding should be at most half .*padding=\[4, 4\]",
    "divisor must be not zero": r"divisor must be not zero, but got divisor_override=0",
    r"Expected 3D or 4D \(batch mode\) tensor with optional 0 dim batch size for input": r"input must not be empty but",
    "Output size is too small": r"output size is too small",
}


def _leaf(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _split(op: str, *args: Any, **kwargs: Any) -> tuple[list[Tensor | None], dict[str, Any]]:
    """A sample's arguments as (tensors, other arguments by name)."""
    arguments = dict(inspect.signature(getattr(cnnfast.functional, op)).bind(*args, **kwargs).arguments)
    tensors = [arguments.pop(name) for name in ("input", "weight", "bias") if name in arguments]
    return tensors, arguments


@pytest.mark.parametrize(("op", "dtype"), OP_DTYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_sample_inputs(op: str, dtype: torch.dtype, device: torch.device) -> None:
    """Within the tolerance rule for the dtypes that have kernels; bit for bit torch's own result for the others."""
    wants_gradient = dtype in OPINFOS[op].supported_backward_dtypes("cpu")
    samples = list(OPINFOS[op].sample_inputs(str(device), dtype, requires_grad=wants_gradient))
    assert samples
    generator = torch.Generator().manual_seed(11)
    for i, sample in enumerate(samples):
        arguments = (sample.input, *sample.args)
        mine, torchs = [[_leaf(value) for value in arguments] for _ in range(2)]
        output = getattr(cnnfast.functional, op)(*mine, **sample.kwargs)
        expected = getattr(F, op)(*torchs, **sample.kwargs)
        if isinstance(expected, tuple):
            assert torch.equal(output[1], expected[1]), sample
            output, expected = output[0], expected[0]
        assert output.dtype == expected.dtype, sample
        assert output.shape == expected.shape, sample
        assert output.stride() == expected.stride(), sample
        leaves, torchs_leaves = (
            [v for v in values if isinstance(v, Tensor) and v.requires_grad] for values in (mine, torchs)
        )
        assert output.requires_grad == expected.requires_grad == bool(leaves), sample
        grad_output = None
        if leaves:
            grad_output = torch.randn(expected.shape, dtype=dtype, generator=generator).to(device)
        gradients = torch.autograd.grad(output, leaves, grad_output) if leaves else ()
        if dtype in DTYPES:
            tensors, options = _split(op, *arguments, **sample.kwargs)
            options.pop("return_indices", None)
            bounded = reference(op, *(None if t is None else t.cpu() for t in tensors), **options,
                                grad_output=None if grad_output is None else grad_output.cpu())  # fmt: skip
            assert_within(output.cpu(), bounded.output, f"{op}: output of sample {i}")
            assert len(gradients) == len(bounded.gradients)
            for actual, gradient in zip(gradients, bounded.gradients):
                assert_within(actual.cpu(), gradient, f"{op}: gradient of sample {i}")
        else:
            assert torch.equal(output, expected), sample
            if leaves:
                for actual, gradient in zip(gradients, torch.autograd.grad(expected, torchs_leaves, grad_output)):
                    assert torch.equal(actual, gradient), sample


@pytest.mark.parametrize("op", [op for op, info in OPINFOS.items() if info.error_inputs_func])
def test_error_inputs(op: str, device: torch.device) -> None:
    errors = list(OPINFOS[op].error_inputs(str(device)))
    assert errors
    for error in errors:
        sample = error.sample_input
        arguments = (sample.input, *sample.args)
        with pytest.raises(error.error_type, match=error.error_regex) as torchs:
            getattr(F, op)(*arguments, **sample.kwargs)
        with pytest.raises(error.error_type) as mine:
            getattr(cnnfast.functional, op)(*arguments, **sample.kwargs)
        assert mine.type is torchs.type
        assert re.search(RULES[error.error_regex], str(mine.value)), (error.error_regex, str(mine.value))


# Ops of ours -> the OpInfo that has their samples, of which every n-th: max_pool2d has 1,440.
SAMPLES = [(op, op, 17 if op == "max_pool2d" else 1) for op in OPINFOS]
SAMPLES += [(op, "conv2d", 1) for op in ("conv2d_relu", "conv2d_relu_max_pool2d")]


@pytest.mark.parametrize(
    ("op", "source", "step"), [*SAMPLES, pytest.param("max_pool2d", "max_pool2d", 1, marks=pytest.mark.long)]
)
def test_opcheck_of_samples(op: str, source: str, step: int) -> None:
    """torch.library.opcheck of the public ops: schema, fake results, registered autograd."""
    samples = list(OPINFOS[source].sample_inputs("cpu", torch.float32, requires_grad=True))
    checked = 0
    for sample in samples[::step]:
        call = functools.partial(getattr(cnnfast.functional, op), sample.input, *sample.args, **sample.kwargs)
        if op == "conv2d_relu_max_pool2d":
            try:
                call()
            except RuntimeError as error:  # a map too small to be pooled
                assert "output size is too small" in str(error)
                continue
        utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
        without_indices = op == "max_pool2d" and not sample.kwargs["return_indices"]
        public = "max_pool2d_with_code" if without_indices else op
        torch.library.opcheck(PUBLIC[public], public_arguments(public, call), test_utils=utilities)
        checked += 1
    assert checked >= 4
