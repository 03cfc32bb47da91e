"""Real models, converted, against themselves on torch's own ops.

Whole models are compared in float64 alone: in float32 a kink of ReLU or max-pooling flips on noise smaller than torch's
own. There, each layer is compared, fed what it got in the float64 model.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnfast
from cnnfast.conversion import SWAPS

try:
    from real_models import MODELS
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
    pytest.skip(f"needs torchvision: {error}", allow_module_level=True)

pytestmark = pytest.mark.long
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def _model(name: str) -> tuple[nn.Module, Tensor]:
    """In float64, with BatchNorm statistics as after some training, so that evaluation is not degenerate."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().double()
    input = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(3):
            model(input)
    return model, input


def _results(model: nn.Module, input: Tensor) -> list[Tensor | None]:
    """Output, and the gradients of input and parameters."""
    leaf = input.clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(1)  # dropout, stochastic depth
    output = model(leaf)
    seed = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(2))
    return [output, *torch.autograd.grad(output, [leaf, *model.parameters()], seed, allow_unused=True)]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_converted_model_is_the_model(name: str, layout: str) -> None:
    model, input = _model(name)
    model, input = model.to(memory_format=FORMATS[layout]), input.contiguous(memory_format=FORMATS[layout])
    converted = cnnfast.convert(model)
    fused = any(change.action == "fused" for change in cnnfast.report(converted))
    assert fused == (name != "ConvNeXt-Tiny")  # whose convolutions are followed by LayerNorm and GELU
    cnnfast.fallbacks(reset=True)
    for training in (True, False):
        model.train(training)
        converted.train(training)
        theirs = _results(model, input)
        # Cancelling sums, such as the bias before a BatchNorm, are noise of the size of their terms.
        scale = max(float(result.abs().max()) for result in theirs[1:] if result is not None)
        for ours, reference in zip(_results(converted, input), theirs, strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-8 * max(scale, 1))
    with torch.inference_mode():
        torch.testing.assert_close(converted(input), model(input), rtol=1e-8, atol=1e-8)
    ours_only = {reason for reasons in cnnfast.fallbacks().values() for reason in reasons}
    assert ours_only <= {"inplace=True is torch's own relu_"}


@pytest.mark.parametrize("winograd", [False, True], ids=["direct sums", "Winograd"])
@pytest.mark.parametrize("name", MODELS)
def test_layers_in_float32(name: str, winograd: bool) -> None:
    """No more than three times torch's error, and some roundings of the largest value: 4 for where torch's happens to
    be nothing, 48 where F(4x4, 3x3) spreads a tile's largest value over its neighbours."""
    model, input = _model(name)
    before = torch.ops.cnnfast.set_winograd(winograd)
    try:
        errors = _layer_errors(model, input, 48 if winograd else 4)
    finally:
        torch.ops.cnnfast.set_winograd(before)
    for ratio, what in errors:
        assert ratio <= 3, f"{what}: {ratio:.1f}x of torch's own error"


def _layer_errors(model: nn.Module, input: Tensor, roundings: int) -> list[tuple[float, str]]:
    """For each swapped layer's output and gradients: our error over torch's, both against float64."""
    met: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def remember(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        key = f"{layer} on {list(args[0].shape)}"
        output.register_hook(lambda grad: met.update({key: (layer, args[0].detach(), grad)}))

    for layer in model.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
        if type(layer) in SWAPS:
            layer.register_forward_hook(remember)
    _results(model.train(), input)
    errors = []
    for key, (layer, layer_input, grad) in met.items():
        rounded = copy.deepcopy(layer).float()
        rounded._forward_hooks.clear()
        exact = copy.deepcopy(rounded).double()
        layer_input, grad = layer_input.float(), grad.float()
        theirs = _layer_results(rounded, layer_input, grad)
        ours = _layer_results(cnnfast.convert(rounded), layer_input, grad)
        reference = _layer_results(exact, layer_input.double(), grad.double())
        for what, our, their, true in zip(("output", *_gradients(layer)), ours, theirs, reference, strict=True):
            floor = roundings * torch.finfo(torch.float32).eps * float(true.abs().max())
            our_error, their_error = float((our - true).abs().max()), float((their - true).abs().max())
            errors.append((our_error / (their_error + floor / 3), f"{what} of {key}") if our_error else (0.0, key))
    return errors


def _gradients(layer: nn.Module) -> list[str]:
    return ["gradient of input", *(f"gradient of {name}" for name, _ in layer.named_parameters())]


def _layer_results(layer: nn.Module, input: Tensor, grad: Tensor) -> list[Tensor]:
    leaf = input.clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(leaf)
    return [output, *torch.autograd.grad(output, [leaf, *layer.parameters()], grad)]


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast(name: str) -> None:
    """As far from float64 as torch's own autocast is, in evaluation."""
    model, input = _model(name)
    exact = model.eval()(input)
    model = model.float()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = cnnfast.convert(model)(input.float()), model(input.float())
    assert ours.dtype is theirs.dtype
    error, allowed = (ours.double() - exact).norm(), (theirs.double() - exact).norm()
    assert error <= 2 * allowed, f"{error:.3g} against torch's {allowed:.3g}"
