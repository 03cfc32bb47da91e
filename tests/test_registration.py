"""The public ops as torch.compile, torch.export and direct callers meet them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_host.fixture import raw_ops
from small_calls import CALLS, Call, one_of_each
from torch import Tensor, nn
from torch.autograd import forward_ad

import cnnfast
from cnnfast import autograd

every_call = pytest.mark.parametrize("call", CALLS, ids=str)
every_op = pytest.mark.parametrize("call", one_of_each(), ids=str)


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    """Each test compiles for itself; the limit on recompilations counts over the whole process."""
    torch.compiler.reset()


def _tensors(call: Call, layouts: str) -> list[Tensor | None]:
    """Leaves of which those that ``layouts`` names, and that have 4 dimensions, are channels_last."""
    tensors = call.tensors(torch.float32)
    for position, name in enumerate(("input", "weight")):
        if name in layouts and position < len(tensors) and tensors[position].dim() == 4:
            tensor = tensors[position].detach().contiguous(memory_format=torch.channels_last)
            tensors[position] = tensor.requires_grad_()
    return tensors


channels_last = pytest.mark.parametrize("layouts", ["nchw", "input", "weight", "input_and_weight"])


@every_call
@channels_last
def test_opcheck(call: Call, layouts: str) -> None:
    tensors = _tensors(call, layouts)
    arguments = call.public_arguments(*tensors)
    # Dynamic shapes trace each call a second time; once per op, below, is enough.
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(autograd.PUBLIC[call.op], arguments, test_utils=utilities)


@every_op
def test_opcheck_traced(call: Call) -> None:
    arguments = call.public_arguments(*call.tensors(torch.float32))
    torch.library.opcheck(autograd.PUBLIC[call.op], arguments, test_utils="test_aot_dispatch_dynamic")


RAW = {name: getattr(torch.ops.cnnfast, op).default for name, op in raw_ops().items()}


@every_call
@channels_last
def test_opcheck_of_raw_ops(call: Call, layouts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake and real results of the ops that eager mode calls, in the forward and the backward of each call."""
    checked = []

    def check(handle: Any) -> Any:
        def checking(*arguments: Any) -> Any:
            checked.append(handle)
            detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
            torch.library.opcheck(handle, tuple(detached), test_utils="test_faketensor")
            return handle(*arguments)

        return checking

    for name, handle in RAW.items():
        monkeypatch.setattr(autograd, name, check(handle))
    output = call.ours(*_tensors(call, layouts))
    output.backward(torch.ones_like(output))
    assert any("backward" in handle.name() for handle in checked)


@every_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_fake_and_real_results_agree(call: Call, dtype: torch.dtype) -> None:
    arguments = call.public_arguments(*call.tensors(dtype))
    torch.library.opcheck(autograd.PUBLIC[call.op], arguments, test_utils="test_faketensor")


class PoolWithIndices(nn.Module):
    """The only caller of max_pool2d: without indices it is max_pool2d_with_code."""

    def forward(self, input: Tensor) -> Tensor:
        return cnnfast.functional.max_pool2d(input, 2, 1, return_indices=True)[0]


class Everything(nn.Module):
    """Every op of the library once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            cnnfast.ConvReLUMaxPool2d(2, 4, 3, padding="same"),
            cnnfast.Conv2d(4, 4, 3, padding=1, groups=2),
            cnnfast.ReLU(),
            cnnfast.MaxPool2d(2),
            cnnfast.ConvTranspose2d(4, 3, 2, stride=2),
            PoolWithIndices(),
            cnnfast.AvgPool2d(2),
            cnnfast.ConvReLU2d(3, 2, 1),
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.layers(input)


def _gradients(model: nn.Module, run: Any, input: Tensor) -> list[Tensor]:
    input = input.clone().requires_grad_()
    output = run(input)
    return [output, *torch.autograd.grad(output.square().sum(), [input, *model.parameters()])]


def test_compile_without_graph_break() -> None:
    torch.manual_seed(0)
    model = Everything()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (3, 5):
        input = torch.randn(batch, 2, 8, 8)
        torch.testing.assert_close(_gradients(model, compiled, input), _gradients(model, model, input))
    with torch.no_grad():
        torch.testing.assert_close(compiled(input), model(input))


def _tangent(f: Any, primal: Tensor) -> Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(primal, torch.ones_like(primal))
        return forward_ad.unpack_dual(f(dual)).tangent


TRANSFORMS = {
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "grad": lambda f: torch.func.grad(lambda x: f(x).square().sum()),
    "vmap": lambda f: lambda x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "dual": lambda f: lambda x: _tangent(f, x),
}


@every_op
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_compiled_transform(call: Call, transform: str) -> None:
    """A traced transform would go around the formulas of the public ops, and drop tangents without a word."""
    image, *others = [None if tensor is None else tensor.detach() for tensor in call.tensors()]
    of = TRANSFORMS[transform]
    compiled = torch.compile(of(lambda x: call.ours(x, *others)), backend="eager")
    torch.testing.assert_close(compiled(image), of(lambda x: call.theirs(x, *others))(image))


def test_compile_counts_nothing() -> None:
    cnnfast.fallbacks(reset=True)
    relu = torch.compile(cnnfast.functional.relu, fullgraph=True, backend="aot_eager")
    assert torch.equal(relu(torch.tensor([-1, 2])), torch.tensor([0, 2]))
    assert cnnfast.fallbacks() == {}


def test_export_holds_the_public_ops() -> None:
    model = Everything().eval()
    input = torch.randn(2, 2, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (input,), dynamic_shapes=({0: batch},))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    for op in autograd.OPS:
        assert f"cnnfast.{op}.default" in targets
    other = torch.randn(3, 2, 8, 8)
    torch.testing.assert_close(program.module()(other), model(other))


@every_op
def test_public_op_differentiates(call: Call) -> None:
    tensors = call.tensors()
    arguments = call.public_arguments(*tensors)
    output = autograd.PUBLIC[call.op](*arguments)
    output = output[0] if isinstance(output, tuple) else output
    grad = torch.randn_like(output)
    actual = torch.autograd.grad(output, tensors, grad)
    torch.testing.assert_close(actual, torch.autograd.grad(call.theirs(*tensors), tensors, grad))


@every_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_as_torch(call: Call, dtype: torch.dtype) -> None:
    tensors = call.tensors(torch.float32)
    arguments = call.public_arguments(*tensors)
    with torch.autocast("cpu", dtype=dtype):
        expected = call.theirs(*tensors)
        eager = call.ours(*tensors)
        public = autograd.PUBLIC[call.op](*arguments)
        compiled = torch.compile(call.ours, fullgraph=True, backend="aot_eager")(*tensors)
    for actual in (eager, public[0] if isinstance(public, tuple) else public, compiled):
        assert actual.dtype == expected.dtype
        # Wide, for torch's sake: its transposed convolution sums in 16 bits.
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
    # Gradients come back in the dtype of the leaves.
    gradients = torch.autograd.grad(eager.sum(), tensors)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_autocast_leaves_float64_alone() -> None:
    call = next(call for call in CALLS if call.op == "conv2d")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call.ours(*call.tensors()).dtype == call.theirs(*call.tensors()).dtype == torch.float64


def test_every_schema_has_a_fake_kernel() -> None:
    names = {name.removeprefix("cnnfast::").split(".")[0] for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("cnnfast::")}  # fmt: skip
    # These take or give no tensor that a graph could hold; fingerprint looks at values, and only the kernels know how
    # large packed weights are.
    without_fake = {"cpu_info", "cuda_archs", "set_cpu_isa", "set_winograd", "fma_peak", "fingerprint"}
    without_fake |= {"conv2d_pack_weight", "explain_conv2d"}
    for name in names - without_fake:
        overload = getattr(torch.ops.cnnfast, name).default
        assert torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "Meta"), name
    assert len(names) >= 2 * len(autograd.OPS)
