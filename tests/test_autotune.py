"""autotune: the fastest is chosen, whatever is chosen is right, and nothing is chosen where it must not be."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from autotuning import BACKWARD, FORMATS, OWN, choices, choosing, conv_and_input, fresh
from torch import Tensor, nn

import cnnfast
from cnnfast import routing, tuned, tuning
from cnnfast.testing import assert_within, reference

pytestmark = pytest.mark.usefixtures(fresh.__name__)

# How the choice is made: a clock that run() itself moves.


def try_all(durations: dict[str, list[float]], **settings: Any) -> tuple[dict[str, float], list[str]]:
    """The medians of what takes so long, call by call (the last one again and again), and the order of the calls."""
    now, order = 0.0, []

    def run(name: str) -> None:
        nonlocal now
        times = durations[name]
        now += times[min(order.count(name), len(times) - 1)]
        order.append(name)

    with cnnfast.autotune(**settings):
        return tuning._try_all(list(durations), run, lambda: now), order


def test_median_of_runs_in_turn() -> None:
    seconds, order = try_all({"a": [9, 3, 1, 2], "b": [9, 2, 2, 9]}, trials=3, seconds=1000)
    assert seconds == {"a": 2, "b": 2}
    assert order == ["a", "b"] * 4


def test_time_is_capped() -> None:
    _, order = try_all({"a": [1], "b": [1]}, trials=100, seconds=7)
    assert len(order) == 8


def test_what_is_hopeless_is_tried_once() -> None:
    seconds, order = try_all({"a": [1.0], "b": [5.0], "c": [1.5]}, trials=3, seconds=1000)
    assert order.count("b") == 2 and order.count("a") == order.count("c") == 4
    assert seconds["b"] == 5.0


def test_first_stays_unless_the_gain_is_clear() -> None:
    assert tuning._fastest({"a": 1.0, "b": 0.98, "c": 2.0}) == "a"
    assert tuning._fastest({"a": 1.0, "b": 0.9, "c": 0.8}) == "c"


def test_candidates_that_fail_are_no_candidates() -> None:
    def run(name: str) -> None:
        if name == "b":
            raise RuntimeError("no memory")

    assert set(tuning._try_all(["a", "b"], run)) == {"a"}
    with pytest.raises(RuntimeError, match="no memory"):
        tuning._try_all(["b", "a"], run)


def test_number_of_choices_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "MOST_CHOICES", 1)
    choosing(monkeypatch, "torch")
    conv, x = conv_and_input()
    with cnnfast.autotune(), torch.no_grad():
        conv(x)
        assert torch.equal(conv(x[:1]), cnnfast.functional.conv2d(x[:1], conv.weight, conv.bias, padding=1))
    assert choices() == ["torch"]


# What is chosen is right.

# C, K, kernel, stride, padding, dilation, groups, size
SHAPES = {
    "many channels": (24, 40, 3, 1, 1, 1, 1, (11, 14)),
    "few channels": (3, 20, 3, 1, 1, 1, 1, (9, 12)),
    "one channel": (1, 12, 3, 1, 0, 1, 1, (6, 6)),
    "strided": (16, 24, 3, 2, 1, 1, 1, (9, 10)),
    "even kernel": (8, 12, 4, 1, "same", 1, 1, (7, 8)),
    "dilated": (10, 12, 3, 1, 2, 2, 1, (9, 9)),
    "groups": (16, 32, 3, 1, 1, 1, 2, (8, 9)),
    "depthwise": (24, 24, 3, 1, 1, 1, 24, (8, 9)),
}


WINOGRAD = {"many channels", "few channels", "one channel", "groups", "depthwise"}


def case(name: str, memory_format: torch.memory_format, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    C, K, size, stride, padding, dilation, groups, (H, W) = SHAPES[name]
    torch.manual_seed(1)
    # Small integers: exact but for Winograd, whose bound test_winograd.py knows.
    x, weight, bias = (torch.randint(-2, 3, s).to(dtype) for s in ((3, C, H, W), (K, C // groups, size, size), (K,)))
    tensors = [x.to(memory_format=memory_format), weight.to(memory_format=memory_format), bias]
    return tensors, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("op", ("conv2d", "conv2d_relu"))
@pytest.mark.parametrize("name", SHAPES)
def test_every_candidate_is_right(
    name: str, op: str, memory_format: torch.memory_format, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = getattr(cnnfast.functional, op)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensors, arguments = case(name, memory_format, dtype)
        plain = function(*tensors, **arguments)
        expected = reference(op, *tensors, **arguments).output
        seen: list[str] = []
        for algorithm in (*OWN, "torch"):
            tuning._tables.clear()
            choosing(monkeypatch, algorithm, seen)
            with cnnfast.autotune():
                first, again = (function(*tensors, **arguments) for _ in range(2))
            assert first.stride() == plain.stride() and torch.equal(first, again), algorithm
            if algorithm == "winograd":
                torch.testing.assert_close(first.double(), expected.value, rtol=1e-2, atol=1e-3)
            else:
                assert_within(first, expected, algorithm)
        assert "torch" in seen and "implicit_gemm" in seen
        if dtype == torch.float32:
            assert ("winograd" in seen) == (name in WINOGRAD)
        assert dtype != torch.float64 or "winograd" not in seen


@pytest.mark.parametrize("wanted", ((True, True, True), (True, True, False), (False, True, True), (True, False, False)))
@pytest.mark.parametrize("op", ("conv2d", "conv2d_relu"))
@pytest.mark.parametrize("name", ("many channels", "even kernel", "depthwise"))
def test_every_gradient_is_right(
    name: str, op: str, wanted: tuple[bool, ...], direct_sums: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, arguments = case(name, torch.channels_last, torch.float32)
    grad = torch.randint(-2, 3, F.conv2d(*tensors, **arguments).shape).float()
    expected = reference(op, *tensors, grad_output=grad, **arguments).gradients
    for algorithm in BACKWARD:
        tuning._tables.clear()
        choosing(monkeypatch, algorithm)
        for _ in range(2):
            leaves = [tensor.clone().requires_grad_(want) for tensor, want in zip(tensors, wanted)]
            with cnnfast.autotune():
                getattr(cnnfast.functional, op)(*leaves, **arguments).backward(grad)
            for leaf, want, gradient in zip(leaves, wanted, expected):
                assert (leaf.grad is not None) == want
                if leaf.grad is not None:
                    assert_within(leaf.grad, gradient, algorithm)
        split = wanted[0] and any(wanted[1:])
        tried = algorithm if split or algorithm in (tuned.PLANNED, tuned.TORCH) else tuned.PLANNED
        assert choices()[1:] == [tried]


def test_gradients_of_one_grouped_image_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 torch's are wrong where the batch is a new dimension."""
    torch.manual_seed(0)
    x, weight = (torch.randn(shape, dtype=torch.float64) for shape in ((1, 8, 7, 4), (16, 4, 3, 3)))
    grads = []
    for memory_format, algorithm in ((torch.contiguous_format, "planned"), (torch.channels_last, "torch")):
        choosing(monkeypatch, algorithm)
        leaves = [tensor.contiguous(memory_format=memory_format) for tensor in (x, weight)]
        leaves = [leaves[0][0].requires_grad_(), leaves[1].requires_grad_()]
        with cnnfast.autotune():
            output = cnnfast.functional.conv2d(*leaves, stride=2, groups=2)
            grads.append(torch.autograd.grad(output.square().sum(), leaves))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_one_image() -> None:
    conv, x = conv_and_input()
    expected = F.conv2d(x[0].double(), conv.weight.double(), conv.bias.double(), padding=1)
    with cnnfast.autotune(trials=1):
        for image in (x[0], x[0].clone().requires_grad_()):
            torch.testing.assert_close(conv(image).double(), expected, rtol=1e-4, atol=1e-4)
        conv(image).sum().backward()
    assert image.grad is not None and image.grad.shape == x[0].shape


@pytest.mark.parametrize("algorithm", (*OWN, "torch"))
@pytest.mark.parametrize("activation", (nn.Identity(), nn.ReLU(), nn.ReLU6()), ids=lambda module: type(module).__name__)
def test_folded_layers_of_packed_weights(
    activation: nn.Module, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(40, 48, 3, padding=1), nn.BatchNorm2d(48), activation).eval()
    x = 4 * torch.randn(1, 40, 7, 7)
    with torch.no_grad():
        expected = model(x)
        model = cnnfast.convert(model)
        choosing(monkeypatch, algorithm, seen := [])
        with cnnfast.autotune():
            for _ in range(2):
                torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    # Few pixels: the planner would take the packed weights.
    assert seen == ["implicit_gemm", "winograd", "torch"]
    assert choices() == [algorithm if algorithm in seen else "implicit_gemm"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)) + x)


@pytest.mark.parametrize("algorithm", (*OWN, "torch"))
def test_what_follows_a_folded_layer(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 16, 20, 21)
    ours = cnnfast.convert(model)
    choosing(monkeypatch, algorithm, seen := [])
    with torch.inference_mode(), cnnfast.autotune():
        for _ in range(2):
            torch.testing.assert_close(ours(x), model(x), rtol=1e-4, atol=1e-4)
    assert choices() == [algorithm if algorithm in seen else seen[0]]
    ((_, tensors, *_),) = tuning.table
    assert len(tensors) == 3  # the residual's layout, too


def test_not_finite_winograd_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    x[0, 3, 4, 5] = torch.inf
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
    choosing(monkeypatch, "winograd")
    with cnnfast.autotune(), torch.no_grad():
        actual = conv(x)
    assert choices() == ["winograd"]
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_winograd_is_no_candidate_where_it_is_switched_off(direct_sums: None, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    choosing(monkeypatch, "winograd", seen := [])
    with cnnfast.autotune():
        conv(x)
    assert "winograd" not in seen and "implicit_gemm" in seen


# When it is chosen.


def test_once_for_each_size_layout_and_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    choosing(monkeypatch, "torch", seen := [])
    with cnnfast.autotune(), torch.no_grad():
        for input in (x, x + 1, x[:1], x.to(memory_format=torch.channels_last)):
            conv(input)
        assert len(tuning.table) == 3
        torch.set_num_threads(2)
        try:
            conv(x)
        finally:
            torch.set_num_threads(1)
        assert len(tuning.table) == 4 and seen.count("torch") == 4
        F.conv2d(x, conv.weight)
        conv(x[:0])
    assert len(tuning.table) == 4


def test_off_is_off_and_on_again_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    choosing(monkeypatch, "torch", seen := [])
    conv(x)
    assert not seen and not tuning.enabled
    cnnfast.autotune()
    assert tuning.enabled
    conv(x)
    with cnnfast.autotune(False):
        assert not tuning.enabled
        conv(x[:1])
    assert tuning.enabled and len(tuning.table) == 1
    cnnfast.autotune(False)
    assert not tuning.enabled
    with cnnfast.autotune():
        conv(x)
    assert seen.count("torch") == 1


def test_nothing_is_tuned_where_results_must_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    x.requires_grad_()
    plain = conv(x)
    choosing(monkeypatch, "torch")
    with cnnfast.autotune():
        conv(x).sum().backward()
        assert choices() == ["torch"] * 2
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.equal(conv(x), plain)  # although there is a choice
            conv(x[:1]).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
    assert len(tuning.table) == 2


def test_nothing_is_tuned_while_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    conv, x = conv_and_input()
    x.requires_grad_()
    choosing(monkeypatch, "torch", seen := [])

    def step(x: Tensor) -> Tensor:
        return torch.autograd.grad(conv(x).sum(), x)[0]

    with cnnfast.autotune():
        torch.compile(conv, backend="aot_eager", fullgraph=True)(x).sum().backward()
        torch.export.export(conv, (x,))
        torch.jit.trace(conv, (x,), check_trace=False)  # the check runs the module once more, untraced
        make_fx(step)(x)
        torch.func.vmap(conv)(x[:, None])
        torch.func.grad(lambda x: conv(x).sum())(x)
        with FlopCounterMode(display=False):
            conv(x.detach())
        fake = (mode := FakeTensorMode()).from_tensor(x.detach())
        with mode:
            cnnfast.Conv2d(16, 24, 3)(fake)
        assert not seen and not tuning.table
        step(x)
        assert len(tuning.table) == 2


def test_threads_measure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    plain = conv(x).detach()
    choosing(monkeypatch, "implicit_gemm", seen := [])
    barrier, results = threading.Barrier(8), []

    def work() -> None:
        torch.set_num_threads(1)
        barrier.wait()
        with torch.no_grad():
            results.append(conv(x))

    with cnnfast.autotune():
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(tuning.table) == 1 and seen.count("torch") == 1
    assert len(results) == 8 and all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], plain, rtol=1e-4, atol=1e-4)


def test_torchs_op_is_counted_and_not_taken_in_strict_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    choosing(monkeypatch, "torch", seen := [])
    cnnfast.fallbacks(reset=True)
    with cnnfast.autotune(), torch.no_grad():
        conv(x)
        assert cnnfast.fallbacks(reset=True) == {"conv2d": {routing.MEASURED.text: 1}}
        monkeypatch.setenv("CNNFAST_STRICT", "1")
        conv(x)
        del seen[:]
        conv(x[:1])
        assert "torch" not in seen and "implicit_gemm" in seen
    assert cnnfast.fallbacks() == {}


def test_mistakes_are_told_as_always() -> None:
    conv, x = conv_and_input()
    with cnnfast.autotune(trials=1):
        conv(x)
        with pytest.raises(RuntimeError, match="^conv2d: given groups=1, weight of shape"):
            conv(x[:, :3])
        with pytest.raises(RuntimeError, match="^conv2d: bias must have shape"):
            cnnfast.functional.conv2d(x, conv.weight, torch.zeros(3), stride=2)
