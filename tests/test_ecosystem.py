"""What torch does with any module and op: save, share, load in workers, trace, checkpoint, hook, profile, cast."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from modules import TWINS, Twin, every_module, results
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import cnnfast
from cnnfast import autograd, routing

FUSED = next(twin for twin in TWINS if twin.name == "ConvReLUMaxPool2d")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(autouse=True)
def counted_from_zero() -> Iterator[None]:
    cnnfast.fallbacks(reset=True)
    yield
    cnnfast.fallbacks(reset=True)


# ------------------------------------------------------------------------------------------------- copies and files


def _reloaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _reloaded_by_allowed_names(module: nn.Module) -> nn.Module:
    """weights_only=True: nothing but the classes that torch.serialization is told of."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    allowed = [getattr(sys.modules[module], name) for module, _, name in (full.rpartition(".") for full in names)]
    file.seek(0)
    with torch.serialization.safe_globals(allowed):
        return torch.load(file, weights_only=True)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "save": _reloaded,
    "save_weights_only": _reloaded_by_allowed_names,
}


@every_module
@pytest.mark.parametrize("how", COPIES)
def test_copies(twin: Twin, how: str) -> None:
    module, _ = twin.modules()
    other = COPIES[how](module)
    assert type(other) is type(module) and repr(other) == repr(module)
    for one, two in zip(results(other, twin.input(2)), results(module, twin.input(2))):
        assert torch.equal(one, two)


@every_module
def test_state_dict_goes_both_ways(twin: Twin) -> None:
    ours, theirs = twin.modules()
    for source, target in ((ours, theirs), (theirs, ours)):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        values = torch.load(file, weights_only=True).values()
        target.load_state_dict(dict(zip(target.state_dict(), values)))
    torch.testing.assert_close(ours(twin.input(2)), theirs(twin.input(2)))


# ------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize(("how", "workers"), [("fork", 2), ("spawn", 1)])  # spawned ones import torch: seconds each
def test_data_loader_workers(how: str, workers: int) -> None:
    script = Path(__file__).with_name("loader_workers.py")
    command = [sys.executable, str(script), how, str(workers)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "the same\n"


def _change_shared(module: nn.Module) -> None:
    with torch.no_grad():
        module(FUSED.input(2))
        module.weight.fill_(2.0)


def test_share_memory() -> None:
    module, _ = FUSED.modules()
    before = module(FUSED.input(2))
    module.share_memory()
    assert all(value.is_shared() for value in module.state_dict().values())
    assert torch.equal(module(FUSED.input(2)), before)
    process = torch.multiprocessing.get_context("fork").Process(target=_change_shared, args=(module,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert (module.weight == 2).all()


# ---------------------------------------------------------------------------------------------- tracing and training


@every_module
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_jit_trace(twin: Twin) -> None:
    """By torch's ops, counted as such, so that the trace runs without cnnfast."""
    module, _ = twin.modules()
    traced = torch.jit.trace(module, twin.input(2))
    assert {reason for of_op in cnnfast.fallbacks().values() for reason in of_op} == {routing.TRACING.text}
    assert "cnnfast::" not in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(twin.input(5)), module(twin.input(5)), rtol=1e-4, atol=1e-4)


@every_module
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(twin: Twin, use_reentrant: bool) -> None:
    module, _ = twin.modules()
    expected = results(module, twin.input(3))
    leaf = twin.input(3).requires_grad_()
    output = checkpoint(module, leaf, use_reentrant=use_reentrant)
    output.square().sum().backward()  # reentrant checkpoints know no torch.autograd.grad
    # Not bit for bit: a reentrant checkpoint runs forward without gradients first, which may take another algorithm.
    torch.testing.assert_close([output, leaf.grad, *(p.grad for p in module.parameters())], expected)


def test_checkpointing_keeps_nothing_within() -> None:
    layers = nn.Sequential(cnnfast.Conv2d(2, 8, 3), cnnfast.ReLU(), cnnfast.MaxPool2d(2))
    kept: list[Tensor] = []
    input = torch.randn(2, 2, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        checkpoint(layers, input, use_reentrant=False)
    assert all(tensor is input or tensor.numel() == 0 for tensor in kept)


@every_module
def test_hooks(twin: Twin) -> None:
    module, _ = twin.modules()
    expected = results(module, twin.input(2))
    seen: list[str] = []

    def tell(what: str) -> Any:
        return lambda *_: seen.append(what)

    module.register_forward_pre_hook(tell("forward_pre"))
    module.register_forward_hook(tell("forward"))
    module.register_full_backward_pre_hook(tell("backward_pre"))
    module.register_full_backward_hook(tell("backward"))
    for parameter in module.parameters():
        parameter.register_hook(tell("gradient"))
        parameter.register_post_accumulate_grad_hook(tell("accumulated"))
    leaf = twin.input(2).requires_grad_()
    output = module(leaf)
    output.register_hook(tell("output"))
    output.square().sum().backward()
    count = len(list(module.parameters()))
    assert seen[:4] == ["forward_pre", "forward", "output", "backward_pre"]
    assert sorted(seen[4:]) == sorted(["backward", *["gradient", "accumulated"] * count])
    for parameter, gradient in zip(module.parameters(), expected[2:]):
        assert torch.equal(parameter.grad, gradient)


def test_hooks_change_values() -> None:
    module, _ = FUSED.modules()
    input = FUSED.input(2)
    output, gradient = results(module, input)[:2]
    module.register_forward_hook(lambda module, args, output: 3 * output)
    handle = module.register_full_backward_hook(lambda module, grads, _: (2 * grads[0],))
    actual, doubled = results(module, input)[:2]
    torch.testing.assert_close(actual, 3 * output)
    torch.testing.assert_close(doubled, 2 * 9 * gradient)
    handle.remove()


@every_module
def test_saved_tensors_on_disk(twin: Twin, tmp_path: Any) -> None:
    """Hooks that keep what backward needs elsewhere; our Functions save by save_for_backward alone."""
    module, _ = twin.modules()
    expected = results(module, twin.input(2))
    files: list[str] = []

    def pack(tensor: Tensor) -> str:
        files.append(str(tmp_path / str(len(files))))
        torch.save(tensor, files[-1])
        return files[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.load):
        actual = results(module, twin.input(2))
    assert files
    for one, other in zip(actual, expected):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------------------------- modes of the world


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@every_module
def test_deterministic_algorithms(twin: Twin, deterministic: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted by our kernels: they are, always. torch then also fills new memory with NaN: nothing reads any."""
    monkeypatch.setenv("CNNFAST_STRICT", "1")
    module, _ = twin.modules()
    first, second = results(module, twin.input(3)), results(module, twin.input(3))
    for one, other in zip(first, second):
        assert torch.equal(one, other) and not one.isnan().any()
    leaf = twin.input(3).requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf).square().sum(), leaf, create_graph=True)
    gradient.square().sum().backward()
    assert not leaf.grad.isnan().any()


def _devices() -> list[str]:
    return ["cpu", *["cuda"] * torch.cuda.is_available()]


@every_module
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of", _devices())
def test_autocast(twin: Twin, dtype: torch.dtype, of: str) -> None:
    """torch's list: convolutions in the lower precision, pooling and ReLU in their input's; gradients in the leaf's."""
    ours, theirs = (module.to(of) for module in twin.modules())
    outputs = []
    for module in (ours, theirs):
        leaf = twin.input(3).to(of).requires_grad_()
        with torch.autocast(of, dtype=dtype):
            output = module(leaf)
            with torch.autocast(of, enabled=False):
                assert module(leaf).dtype == torch.float32
        output.float().square().sum().backward()
        assert all(tensor.grad.dtype == torch.float32 for tensor in (leaf, *module.parameters()))
        outputs.append(output)
    assert outputs[0].dtype == outputs[1].dtype
    torch.testing.assert_close(*outputs, rtol=2e-2, atol=2e-2)


EVENTS = {
    "Conv2d": ("conv2d", [[3, 2, 8, 7], [4, 2, 3, 3], [4]]),
    "ConvTranspose2d": ("conv_transpose2d", [[3, 2, 8, 7], [2, 4, 3, 3], [4]]),
    "ReLU": ("relu", [[3, 2, 8, 7]]),
    "MaxPool2d": ("max_pool2d", [[3, 2, 8, 7]]),
    "AvgPool2d": ("avg_pool2d", [[3, 2, 8, 7]]),
    "ConvReLUMaxPool2d": ("conv2d_relu_max_pool2d", [[3, 2, 8, 7], [4, 2, 3, 3], [4]]),
}


@pytest.mark.parametrize("twin", [t for t in TWINS if t.name in EVENTS], ids=lambda twin: twin.name)
def test_profiler_names_our_ops_with_their_shapes(twin: Twin) -> None:
    op, shapes = EVENTS[twin.name]
    module, _ = twin.modules()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        results(module, twin.input(3))
    events = {event.name: event.input_shapes for event in seen.events()}
    assert events[f"cnnfast::{op}_forward"][: len(shapes)] == shapes
    assert f"cnnfast::{op}_backward" in events
    called = "max_pool2d_with_code" if op == "max_pool2d" else op
    assert f"{autograd.OPS[called].__name__}Backward" in events


def test_a_dispatch_mode_sees_our_ops() -> None:

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    module, _ = FUSED.modules()
    with Names():
        results(module, FUSED.input(2))
    assert {"cnnfast::conv2d_relu_max_pool2d_forward", "cnnfast::conv2d_relu_max_pool2d_backward"} <= set(names)


def test_fake_tensors_outside_of_torch_compile() -> None:
    with FakeTensorMode():
        output = cnnfast.Conv2d(2, 4, 3)(torch.empty(3, 2, 8, 8))
    assert output.shape == (3, 4, 6, 6)
