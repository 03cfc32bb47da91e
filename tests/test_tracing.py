"""Forwards that a careless trace would make another program of: converted, they must do what they did."""

from __future__ import annotations

import copy
import functools
import pickle
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cnnfast


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.inplace = nn.ReLU(inplace=True)
        self.head = Head()
        self.drop = nn.Dropout(0.9)
        self.first = self.second = nn.Sigmoid()
        self.layers = nn.ModuleList([nn.ModuleList([nn.Sigmoid()])])
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mask", None)
        self.factor = 1.0
        self.function: Callable[[Tensor], Tensor] = _scaled
        self.random = random.random
        self.seen: list[Tensor] = []

    klass = 1.0

    @property
    def doubled(self) -> float:
        return self.factor * 2

    @functools.cached_property
    def cached(self) -> float:
        return self.factor * 2

    def block(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Head(nn.Module):
    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def method(self, x: Tensor) -> Tensor:
        return x * self.factor


GLOBAL = {"factor": 1.0}


def _scaled(x: Tensor) -> Tensor:
    return x * GLOBAL["factor"]


# Fused and right -----------------------------------------------------------------------------------------------------


def method(self: Block, x: Tensor) -> Tensor:
    return self.block(x)


def constant(self: Block, x: Tensor) -> Tensor:
    return self.block(x) * self.factor * self.doubled * self.klass


def in_place_on_the_input(self: Block, x: Tensor) -> Tensor:
    identity = x
    x += 1
    return self.block(x) + identity


def buffer_in_place(self: Block, x: Tensor) -> Tensor:
    self.count.add_(1)
    return self.block(x) * self.count


def buffer_dtype(self: Block, x: Tensor) -> Tensor:
    return self.block(x.to(self.count.dtype))


def absent_buffer(self: Block, x: Tensor) -> Tensor:
    x = self.block(x)
    return x if self.mask is None else x * self.mask


def two_names(self: Block, x: Tensor) -> Tensor:
    return self.second(self.first(self.block(x)))


def nested_lists(self: Block, x: Tensor) -> Tensor:
    x = self.block(x)
    for layers in self.layers:
        for layer in layers:
            x = layer(x)
    return x


def view_in_place(self: Block, x: Tensor) -> Tensor:
    x = self.block(x)
    x[:, 0].zero_()
    return x


def own_training(self: Block, x: Tensor) -> Tensor:
    return F.dropout(self.block(x), 0.5, self.training)


FUSED = [method, constant, in_place_on_the_input, buffer_in_place, buffer_dtype, absent_buffer, two_names]
FUSED += [nested_lists, view_in_place, own_training]

# Not fused, each for a reason of its own -----------------------------------------------------------------------------


def no_grad(self: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        return self.block(x)


def prints(self: Block, x: Tensor) -> Tensor:
    print("forward")
    return self.block(x)


def counts(self: Block, x: Tensor) -> Tensor:
    self.factor = self.factor + 1
    return self.block(x) * self.factor


def collects(self: Block, x: Tensor) -> Tensor:
    self.seen.append(x)
    return self.block(x) * len(self.seen)


def optional(self: Block, x: Tensor, factor: float | None = None) -> Tensor:
    return self.block(x) if factor is None else self.block(x) * factor


def branches(self: Block, x: Tensor) -> Tensor:
    x = self.block(x)
    return x if x.sum() > 1e9 else -x


def draws(self: Block, x: Tensor) -> Tensor:
    return self.block(x) * torch.rand(1, dtype=x.dtype)


def random_attribute(self: Block, x: Tensor) -> Tensor:
    return self.block(x) * self.random()


def grad_mode(self: Block, x: Tensor) -> Tensor:
    x = self.block(x)
    return x if torch.is_grad_enabled() else x * 2


def deterministic_mode(self: Block, x: Tensor) -> Tensor:
    x = self.block(x)
    return x * 2 if torch.are_deterministic_algorithms_enabled() else x


def helper(self: Block, x: Tensor) -> Tensor:
    return _scaled(self.block(x))


def function_attribute(self: Block, x: Tensor) -> Tensor:
    return self.function(self.block(x))


def catches(self: Block, x: Tensor) -> Tensor:
    x = self.block(x).transpose(2, 3)
    try:
        return x.view(2, -1)
    except RuntimeError:
        return x.reshape(2, -1)


def buffer_value(self: Block, x: Tensor) -> Tensor:
    return self.block(x) * float(self.count)


def child_attribute(self: Block, x: Tensor) -> Tensor:
    return self.block(x) * self.head.factor


def child_method(self: Block, x: Tensor) -> Tensor:
    return self.head.method(self.block(x))


def child_forward(self: Block, x: Tensor) -> Tensor:
    return self.head.forward(self.block(x))


def child_training(self: Block, x: Tensor) -> Tensor:
    return F.dropout(self.block(x), 0.5, self.drop.training)


def child_mode(self: Block, x: Tensor) -> Tensor:
    self.bn.eval()
    return self.block(x)


def cached_property(self: Block, x: Tensor) -> Tensor:
    return self.block(x) * self.cached


def changed_between(self: Block, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = self.inplace(x)
    return self.relu(y) + z


UNFUSED: dict[Callable[..., Tensor], str] = {
    no_grad: "no_grad (has effects that a trace does not show|uses no_grad)",
    prints: "prints uses print, which a trace might not show",
    counts: r"counts has effects that a trace does not show \(STORE_ATTR\)",
    collects: "forward reads the attribute seen of type list",
    optional: "forward has the optional argument factor",
    branches: r"forward does not trace \(TraceError: symbolically traced variables cannot be used as inputs",
    draws: "draws uses rand, ",
    random_attribute: "forward reads the attribute random of type builtin_function_or_method",
    grad_mode: "grad_mode uses is_grad_enabled",
    deterministic_mode: "deterministic_mode uses are_deterministic_algorithms_enabled",
    helper: "helper uses _scaled",
    function_attribute: "forward reads the attribute function of type function",
    catches: "catches has effects that a trace does not show",
    buffer_value: r"forward does not trace \(TypeError",
    child_attribute: "child_attribute uses factor",
    child_method: "child_method uses method",
    child_forward: "child_forward uses forward",
    child_training: "child_training uses training",
    child_mode: "child_mode uses eval",
    cached_property: "forward reads the attribute cached of type cached_property",
    changed_between: "nothing in it follows a convolution",
}


def _model(forward: Callable[..., Tensor]) -> Block:
    torch.manual_seed(0)
    return type("Model", (Block,), {"forward": forward, "__module__": __name__})().double()


def _input() -> Tensor:
    return torch.randn(2, 3, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _change(model: Block) -> None:
    """Everything that a trace may have taken for constant."""
    model.factor = 3.0
    model.klass = 5.0
    model.head.factor = 7.0
    model.first = nn.Tanh()
    model.layers[0].append(nn.Tanh())
    model.mask = torch.full((), 2.0, dtype=torch.float64)
    model.count.fill_(4)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("forward", [*FUSED, *UNFUSED], ids=lambda forward: forward.__name__)
def test_program_is_the_same(forward: Callable[..., Tensor], training: bool) -> None:
    model = _model(forward).train(training)
    converted = cnnfast.convert(copy.deepcopy(model), inplace=True)
    unfused = [change.detail for change in cnnfast.report(converted) if change.action == "unfused"]
    assert [bool(re.match(UNFUSED[forward], reason)) for reason in unfused] == [True] if unfused else forward in FUSED
    results = []
    for program in (model, converted):
        random.seed(0)
        torch.manual_seed(2)
        inputs = [_input(), _input(), _input()]
        outputs = [program(inputs[0])]
        with torch.no_grad():
            outputs.append(program(inputs[1]))
        _change(program.train(not training))
        outputs.append(program(inputs[2]))
        results.append([*outputs, *inputs, *program.buffers()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_number_that_becomes_a_tensor() -> None:
    model, converted = _model(constant), cnnfast.convert(_model(constant))
    for program in (model, converted):
        program.factor = torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)  # equal to what was baked in
        program(_input()).sum().backward()
    assert converted.factor.grad is not None
    torch.testing.assert_close(converted.factor.grad, model.factor.grad)


class OwnIteration(nn.Sequential):
    def __iter__(self) -> Any:
        return iter(list(self._modules.values())[:2])


class OwnAttributes(Block):
    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    forward = method


class OwnPickling(Block):
    def __reduce__(self) -> Any:
        return (OwnPickling, ())

    forward = method


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OwnIteration(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Tanh()), "OwnIteration has its own __iter__"),
        (OwnAttributes, "OwnAttributes has its own __getattr__"),
        (OwnPickling, "OwnPickling has its own way of being pickled"),
    ],
)
def test_classes_with_operators_of_their_own(make: Callable[[], nn.Module], reason: str) -> None:
    converted = cnnfast.convert(make(), inplace=True)
    assert reason in [change.detail for change in cnnfast.report(converted)]


def test_class_that_wants_arguments_of_its_subclasses() -> None:
    class Registered(Block):
        forward = method

        def __init_subclass__(cls, *, key: str) -> None:
            raise AssertionError("a fused class is no new model")

    model = Registered().double()
    converted = cnnfast.convert(copy.deepcopy(model), inplace=True)
    assert any(change.action == "fused" for change in cnnfast.report(converted))
    torch.testing.assert_close(converted(_input()), model(_input()))


def test_convolution_patched_after_conversion() -> None:
    converted = cnnfast.convert(_model(method).eval())
    patch = functools.partial(F.conv2d, padding=0)
    converted.conv._conv_forward = lambda input, weight, bias: patch(input, weight, bias)
    assert converted(_input()).shape[2:] == (6, 8)


def test_nothing_is_traced_when_called() -> None:
    """fx changes nn.Module while it traces; a model out of a pickle may be called by many threads at once."""
    sequence = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).double().eval()
    again = pickle.loads(pickle.dumps(cnnfast.convert(sequence)))
    with ThreadPoolExecutor(4) as pool:
        for output in pool.map(again, [_input()] * 16):
            torch.testing.assert_close(output, sequence(_input()))


def test_fx_and_jit_take_what_is_fused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).double().eval()
    converted = cnnfast.convert(model)
    for traced in (torch.fx.symbolic_trace(converted), torch.jit.trace(converted, _input())):
        torch.testing.assert_close(traced(_input()), model(_input()))


def test_whether_arguments_are_the_same_object_is_asked_at_each_call() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out = self.relu(self.conv(x))
            return out if x is y else out + y

    model, x = Same(), torch.randn(1, 3, 4, 4)
    fast = cnnfast.convert(model)
    for y in (x, x.clone()):
        torch.testing.assert_close(fast(x, y), model(x, y))
