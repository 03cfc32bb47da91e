"""torch.compile: one graph, forward and backward, that serves every batch; results held to eager float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from modules import TWINS, Twin, every_module, results
from torch import Tensor, nn
from torch._dynamo.utils import counters

import cnnfast
import cnnfast.functional as CF
from cnnfast.autograd import PUBLIC

LECTURE = next(twin for twin in TWINS if twin.name == "LectureCNN")
FUSED = next(twin for twin in TWINS if twin.name == "ConvReLUMaxPool2d")
some_layers = pytest.mark.parametrize(
    "twin", [t for t in TWINS if t.name in ("Conv2d", "AvgPool2d", "ConvReLUMaxPool2d")], ids=lambda twin: twin.name
)
every_layer = pytest.mark.parametrize("twin", [t for t in TWINS if t != LECTURE], ids=lambda twin: twin.name)
# torch's own, in its own use of its own functions.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method")


@pytest.fixture(autouse=True)
def compiled_anew() -> Iterator[None]:
    """Each test compiles for itself; graphs and recompilations are counted over the whole process."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def _graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def _check(module: nn.Module, compiled: Callable[[Tensor], Tensor], input: Tensor) -> None:
    """Output and gradients, against eager float64."""
    expected = results(copy.deepcopy(module).double(), input.double())
    actual = results(module, input, compiled)
    torch.testing.assert_close(actual, [t.float() for t in expected], rtol=1e-4, atol=1e-4)


def _check_or_blame_torch(twin: Twin, compiled: Callable[[Tensor], Tensor], module: nn.Module, input: Tensor) -> None:
    """What is wrong with torch's own layers as well is a fault of torch's compiler, and is named so."""
    try:
        _check(module, compiled, input)
    except AssertionError:
        _, theirs = twin.modules()
        try:
            _check(theirs, torch.compile(theirs, fullgraph=True), input)
        except AssertionError as error:
            pytest.xfail(f"torch {torch.__version__} compiles {twin.name} of its own layers wrong, too: {error}")
        raise


@every_module
def test_other_batches_recompile_at_most_once(twin: Twin) -> None:
    module, _ = twin.modules()
    compiled = torch.compile(module, fullgraph=True)
    for batch in (3, 5, 9, 2):
        _check_or_blame_torch(twin, compiled, module, twin.input(batch))
    # The second is the one for any batch.
    assert _graphs() <= 2


@every_module
def test_inference(twin: Twin) -> None:
    module, _ = twin.modules()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (3, 5, 9):
        with torch.no_grad():
            output = compiled(twin.input(batch))
            torch.testing.assert_close(output, module(twin.input(batch)), rtol=1e-4, atol=1e-4)
            assert not output.requires_grad
    assert _graphs() <= 2


@pytest.mark.parametrize("twin", [FUSED, LECTURE], ids=lambda twin: twin.name)
def test_dynamic_from_the_start(twin: Twin) -> None:
    module, _ = twin.modules()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (4, 7):
        _check_or_blame_torch(twin, compiled, module, twin.input(batch))
    assert _graphs() == 1


@some_layers
def test_one_image_and_none(twin: Twin) -> None:
    """torch makes graphs of their own for sizes 0 and 1."""
    module, _ = twin.modules()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (1, 0, 4):
        _check(module, compiled, twin.input(batch))


@every_layer
def test_other_image_sizes(twin: Twin) -> None:
    module, _ = twin.modules()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((8, 7), (11, 13), (6, 20)):
        _check(module, compiled, torch.randn(2, 2, *size))
    # torch may guard on the memory format, which depends on the sizes, but not on each size.
    assert _graphs() <= 2


@some_layers
def test_channels_last(twin: Twin) -> None:
    module, _ = twin.modules()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    input = twin.input(3).contiguous(memory_format=torch.channels_last)
    _check(module, compiled, input)
    assert compiled(input).stride() == module(input).stride()


def test_training_step() -> None:
    """Dropout, loss and optimizer included, in one compiled function; both networks from the same seed."""
    images, target = LECTURE.input(6), torch.arange(6)
    networks = []
    for compiling in (False, True):
        model, _ = LECTURE.modules()
        model.fc_layers[2].p = 0.0  # the compiler draws other random numbers
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)

        def loss(model: nn.Module = model) -> Tensor:
            return nn.functional.cross_entropy(model(images), target)

        run = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiling else loss
        for _ in range(3):
            optimizer.zero_grad()
            run().backward()
            optimizer.step()
        networks.append(model)
    for one, other in zip(networks[0].parameters(), networks[1].parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_all_results_of_max_pool2d() -> None:
    input = torch.randn(2, 3, 7, 7)
    compiled = torch.compile(lambda x: CF.max_pool2d(x, 3, 2, return_indices=True), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(input), CF.max_pool2d(input, 3, 2, return_indices=True)):
        assert torch.equal(actual, expected)


def test_relu_inplace() -> None:
    input = torch.randn(4, 5)
    expected = input.relu()
    compiled = torch.compile(cnnfast.ReLU(inplace=True), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(input), expected)
    assert torch.equal(input, expected)


def test_where_ci_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """There inductor raises for ops that it finds in torch's table of decompositions."""
    from torch._inductor.lowering import lowerings

    monkeypatch.setenv("CI", "true")
    for op in PUBLIC.values():
        monkeypatch.delitem(lowerings, op, raising=False)  # compiled before, CI unset
    module, _ = LECTURE.modules()
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        output = torch.compile(module, fullgraph=True)(LECTURE.input(3))
    torch.testing.assert_close(output, module(LECTURE.input(3)), rtol=1e-4, atol=1e-4)


def test_errors_are_the_kernels() -> None:
    compiled = torch.compile(cnnfast.Conv2d(2, 4, 3), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"conv2d: .*expects input to have 2 channels, but got input.shape=\[1, 3,"):
        compiled(torch.randn(1, 3, 8, 8))


def test_strict_mode_refuses_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_STRICT", "1")
    compiled = torch.compile(CF.relu, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    with pytest.raises(
        Exception, match="relu: CNNFAST_STRICT=1 allows own kernels only, but got no kernel for torch.int"
    ):
        compiled(torch.tensor([-1, 2]))


@pytest.mark.long
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes(mode: str) -> None:
    module, _ = LECTURE.modules()
    compiled = torch.compile(module, fullgraph=True, mode=mode)
    for batch in (3, 5):
        _check_or_blame_torch(LECTURE, compiled, module, LECTURE.input(batch))


@pytest.mark.long
def test_freezing() -> None:
    """Weights as constants of the compiled graph."""
    module, _ = LECTURE.modules()
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        output = torch.compile(module, fullgraph=True)(LECTURE.input(3))
        torch.testing.assert_close(output, module(LECTURE.input(3)), rtol=1e-4, atol=1e-4)
