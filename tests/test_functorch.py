"""torch.func's transforms and forward mode: torch's values, of the functionals, the public ops and the modules.

Our formulas know only backward. A transform that went around them would drop tangents, or a dimension, without a word;
so whatever such a transform reaches runs on torch's ops, and that is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from modules import Twin, every_module, results
from small_calls import Call, one_of_each
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import cnnfast
from cnnfast import autograd, routing

every_op = pytest.mark.parametrize("call", one_of_each(), ids=str)
# Forward mode scripts torch's formulas.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script", "ignore:Using padding='same' with even kernel")

Function = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def counted_from_zero() -> Iterator[None]:
    cnnfast.fallbacks(reset=True)
    yield
    cnnfast.fallbacks(reset=True)


def _tangent(f: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent


def _loss(f: Function) -> Function:
    return lambda x: f(x).square().sum()


TRANSFORMS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "grad": lambda f, x: grad(_loss(f))(x),
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),))[1],
    "dual": _tangent,
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x])),
    "vmap_of_grad": lambda f, x: vmap(grad(_loss(f)))(torch.stack([x, 2 * x])),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(_loss(f))(x),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS)


def _of_input(call: Call) -> tuple[Tensor, Function, Function, Function]:
    """The input, and as functions of it: the functional, the public op, torch's."""
    input, *others = [None if tensor is None else tensor.detach() for tensor in call.tensors()]
    arguments = call.public_arguments(input, *others)[1:]

    def public(x: Tensor) -> Tensor:
        result = getattr(torch.ops.cnnfast, call.op)(x, *arguments)
        return result[0] if isinstance(result, tuple) else result

    return input, lambda x: call.ours(x, *others), public, lambda x: call.theirs(x, *others)


@every_op
@every_transform
def test_as_torch_and_counted(call: Call, transform: str) -> None:
    input, functional, public, theirs = _of_input(call)
    expected = TRANSFORMS[transform](theirs, input)
    for ours in (functional, public):
        torch.testing.assert_close(TRANSFORMS[transform](ours, input), expected)
        (reason,) = cnnfast.fallbacks(reset=True)[autograd.OPS[call.op].functional]
        assert reason == (routing.FORWARD_AD if transform == "dual" else routing.FUNCTORCH).text


@pytest.mark.parametrize("transform", ["jvp", "dual"])
def test_strict_mode_refuses_the_public_op(transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    input, _, public, _ = _of_input(one_of_each()[0])
    monkeypatch.setenv("CNNFAST_STRICT", "1")
    with pytest.raises(RuntimeError, match="CNNFAST_STRICT=1 allows own kernels only, but got .* is active"):
        TRANSFORMS[transform](public, input)
    with forward_ad.dual_level():
        public(input)  # no tangent, own kernel


@every_op
def test_forward_mode_derivatives(call: Call) -> None:
    """Against finite differences, forward over reverse too. With respect to all tensors, unlike the others here."""
    tensors = call.tensors()
    assert torch.autograd.gradcheck(call.ours, tensors, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call.ours, tensors, fast_mode=True, check_fwd_over_rev=True)


@every_op
def test_tangent_of_grad_output(call: Call) -> None:
    """Backward in a dual_level() of a forward outside it: linear in grad_output."""
    tensors = call.tensors()
    output = call.ours(*tensors)
    grad_output, tangent = torch.randn_like(output), torch.randn_like(output)
    with forward_ad.dual_level():
        gradients = torch.autograd.grad(output, tensors, forward_ad.make_dual(grad_output, tangent), retain_graph=True)
        tangents = [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]
    torch.testing.assert_close(tangents, list(torch.autograd.grad(output, tensors, tangent)))


@every_op
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("how", ["is_grads_batched", "vmap"])
def test_batched_grad_output(call: Call, how: str, create_graph: bool) -> None:
    tensors = call.tensors()
    output, expected = call.ours(*tensors), call.theirs(*tensors)
    grad_outputs = torch.randn(3, *output.shape, dtype=output.dtype)

    def gradients(grad_output: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, tensors, grad_output, create_graph=create_graph, **options)

    batched = gradients(grad_outputs, is_grads_batched=True) if how != "vmap" else vmap(gradients)(grad_outputs)
    torch.testing.assert_close(batched, torch.autograd.grad(expected, tensors, grad_outputs, is_grads_batched=True))


@every_op
def test_a_compiled_function_of_a_dual(call: Call) -> None:
    """Compiled before there is a tangent."""
    input, functional, public, theirs = _of_input(call)
    for ours in (functional, public):
        torch.compiler.reset()
        compiled = torch.compile(ours, backend="eager")
        torch.testing.assert_close(compiled(input), theirs(input))
        torch.testing.assert_close(_tangent(compiled, input), _tangent(theirs, input))


@every_module
def test_functional_call(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """On our own kernels: no transform is active."""
    monkeypatch.setenv("CNNFAST_STRICT", "1")
    ours, theirs = twin.modules()
    parameters = {name: 2 * value.detach() for name, value in ours.named_parameters()}
    output = functional_call(ours, parameters, (twin.input(2),))
    theirs_parameters = dict(zip(dict(theirs.named_parameters()), parameters.values()))
    torch.testing.assert_close(output, functional_call(theirs, theirs_parameters, (twin.input(2),)))


@every_module
def test_gradients_of_each_sample(twin: Twin) -> None:
    """The customary use of torch.func: vmap of grad of functional_call."""
    ours, _ = twin.modules()
    input = twin.input(3)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(ours, parameters, (image.unsqueeze(0),)).square().sum()

    parameters = {name: value.detach() for name, value in ours.named_parameters()}
    of_images, of_parameters = vmap(grad(lambda i, p: loss(p, i), argnums=(0, 1)), in_dims=(0, None))(input, parameters)
    for i in range(3):
        expected = results(ours, input[i : i + 1])[1:]
        actual = [of_images[i : i + 1], *(gradient[i] for gradient in of_parameters.values())]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@every_module
def test_vmap_over_weights(twin: Twin) -> None:
    """An ensemble: stacked parameters, one input."""
    ours, _ = twin.modules()
    stacked = {name: torch.stack([value, -value]).detach() for name, value in ours.named_parameters()}
    input = twin.input(2)
    if not stacked:
        pytest.skip("no parameters")
    outputs = vmap(lambda parameters: functional_call(ours, parameters, (input,)))(stacked)
    for i in range(2):
        one = functional_call(ours, {name: value[i] for name, value in stacked.items()}, (input,))
        torch.testing.assert_close(outputs[i], one, rtol=1e-4, atol=1e-4)
