"""explain: what it says is what runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cnnfast
from cnnfast import explain

ops = torch.ops.cnnfast

# C, K, kernel, stride, padding, groups, input's size: the forward pass's algorithm and the weight gradient's.
SHAPES = {
    "many channels": ((64, 64, 3, 1, 1, 1, (4, 64, 28, 28)), "winograd", "winograd"),
    "strided": ((64, 64, 3, 2, 1, 1, (4, 64, 28, 28)), "implicit_gemm", "implicit_gemm"),
    "1x1": ((64, 96, 1, 1, 0, 1, (4, 64, 14, 14)), "implicit_gemm", "implicit_gemm"),
    "first layer": ((3, 32, 3, 1, 1, 1, (4, 3, 32, 32)), "direct", "direct"),
    "depthwise": ((48, 48, 3, 1, 1, 48, (4, 48, 14, 14)), "depthwise", "depthwise"),
    "depthwise, wide rows": ((16, 16, 3, 1, 1, 16, (1, 16, 3, 30_000)), "depthwise", "depthwise"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_names_the_algorithm(name: str, isa: str) -> None:
    (C, K, size, stride, padding, groups, shape), forward, grad_weight = SHAPES[name]
    conv = cnnfast.Conv2d(C, K, size, stride, padding, groups=groups)
    found = explain(conv, shape, input_gradient=name != "first layer")
    assert (found.forward, found.grad_weight, found.isa) == (forward, grad_weight, isa)
    assert (found.grad_input is None) == (name == "first layer")
    assert str(found).startswith(f"conv2d: {list(shape)} * ")


def _results(conv: cnnfast.Conv2d, x: Tensor) -> list[Tensor]:
    y = conv(x)
    return [y.detach(), *torch.autograd.grad(y, (x, conv.weight), torch.ones_like(y).cumsum(1))]


FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("size", (7, 9, 17))
@pytest.mark.parametrize("channels", (8, 16, 40))
def test_is_winograd_where_the_bits_are(
    channels: int, size: int, memory_format: torch.memory_format, weight_format: torch.memory_format, isa: str
) -> None:
    torch.manual_seed(0)
    conv = cnnfast.Conv2d(channels, 48, 3, padding=1).to(memory_format=weight_format)
    x = torch.randn(3, channels, size, size + 1).to(memory_format=memory_format).requires_grad_()
    found = explain(conv, x)
    with_winograd = _results(conv, x)
    enabled = ops.set_winograd(False)
    try:
        direct = _results(conv, x)
        assert "winograd" not in str(explain(conv, x))
    finally:
        ops.set_winograd(enabled)
    algorithms = (found.forward, found.grad_input, found.grad_weight)
    for algorithm, ours, theirs in zip(algorithms, with_winograd, direct, strict=True):
        assert (algorithm == "winograd") == (not torch.equal(ours, theirs))


def test_pads_as_the_module_does() -> None:
    assert explain(cnnfast.Conv2d(64, 64, 3, padding="same"), (4, 64, 28, 28)).forward == "winograd"
    # Without the padding there would be two outputs.
    assert explain(cnnfast.Conv2d(64, 64, 3, padding=3, padding_mode="reflect"), (4, 64, 4, 4)).forward == "winograd"


def test_of_other_dtypes() -> None:
    conv = cnnfast.Conv2d(64, 64, 3, padding=1).double()
    assert explain(conv, (4, 64, 28, 28)).forward == "implicit_gemm"
    half = cnnfast.Conv2d(32, 32, 3, groups=32).half()
    assert explain(half, (1, 32, 9, 9)).forward == "depthwise"
    found = explain(torch.nn.Conv2d(2, 2, 1).to(torch.float8_e5m2), (1, 2, 3, 3))
    assert found.forward == found.grad_weight == "torch"
    assert "no kernel for torch.float8_e5m2" in str(found)


def test_errors() -> None:
    message = "explain: module must be one layer, an nn.Conv2d without pooling, but got module="
    with pytest.raises(TypeError, match=message + "Linear"):
        explain(torch.nn.Linear(2, 2), (1, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=message + "ConvReLUMaxPool2d"):
        explain(cnnfast.ConvReLUMaxPool2d(3, 8, 3, pool_kernel_size=2), (1, 3, 9, 9))
    for sizes in (8, (3, 9)):
        with pytest.raises(TypeError, match=r"explain: input must be a Tensor or its sizes .*, but got input="):
            explain(cnnfast.Conv2d(3, 8, 3), sizes)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="explain: "):
        explain(cnnfast.Conv2d(3, 8, 3), (1, 4, 9, 9))
