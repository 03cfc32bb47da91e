"""freeze: a network that only infers is one program of constants, and computes what the network did."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import cnnfast
from cnnfast import folding, routing
from cnnfast.frozen import FrozenConv2d

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class Block(nn.Module):
    """A downsampling block of a residual network, with every activation that runs with a convolution."""

    def __init__(self, C: int, K: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(C, K, 3, 2, 1, bias=False), nn.BatchNorm2d(K)
        self.conv2, self.bn2 = nn.Conv2d(K, K, 5, padding="same", groups=K), nn.BatchNorm2d(K)
        self.conv3, self.bn3 = nn.Conv2d(K, K, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(K, affine=False)
        self.downsample = nn.Sequential(nn.Conv2d(C, K, 1, 2), nn.BatchNorm2d(K))

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.bn1(self.conv1(x)))
        out = F.hardswish(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return F.relu(out)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 1))
        self.blocks = nn.ModuleList([Block(12, 16), Block(16, 20)])
        self.head = nn.Sequential(nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def network(cls: Callable[[], nn.Module] = Network) -> nn.Module:
    """In evaluation mode, with statistics that BatchNorm does not start from."""
    torch.manual_seed(0)
    model = cls().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5)
    return model


def images(layout: str = "NCHW") -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 33, 38).to(memory_format=FORMATS[layout])


def check(frozen: nn.Module, model: nn.Module, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    with torch.no_grad():
        expected = model(x)
        for _ in range(2):  # the second time with what was packed
            torch.testing.assert_close(frozen(x), expected, rtol=1e-4, atol=1e-4)


def layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, FrozenConv2d)]


@pytest.mark.parametrize("layout", FORMATS)
def test_one_program(layout: str) -> None:
    model = network().to(memory_format=FORMATS[layout])
    frozen = cnnfast.freeze(model)
    assert isinstance(frozen, fx.GraphModule)
    kinds = [type(module) for module in frozen.modules()]
    assert nn.BatchNorm2d not in kinds and nn.MaxPool2d not in kinds and nn.Conv2d not in kinds
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(layers(frozen)) == sorted(convolutions)
    check(frozen, model, images(layout))
    with torch.inference_mode():
        check(frozen, model, images(layout))
        with torch.profiler.profile() as profile:
            frozen(images(layout))
    names = {event.name for event in profile.events()}
    assert not names & {"aten::relu", "aten::silu", "aten::hardswish", "aten::add_", "aten::batch_norm"}


@pytest.mark.parametrize("start", [lambda model: model, cnnfast.convert], ids=["torch", "converted"])
def test_the_model_is_left_alone(start: Callable[[nn.Module], nn.Module]) -> None:
    model = start(network())
    before, types = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    frozen = cnnfast.freeze(model)
    expected = frozen(images())
    assert [type(module) for module in model.modules()] == types
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(frozen(images()), expected)


@pytest.mark.parametrize("how", ["deepcopy", "save", "state_dict"])
def test_copies(how: str) -> None:
    model = network()
    frozen = cnnfast.freeze(model)
    check(frozen, model)
    if how == "deepcopy":
        other = copy.deepcopy(frozen)
    elif how == "save":
        torch.save(frozen, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        torch.manual_seed(2)
        other = cnnfast.freeze(Network().eval())
        other(images())  # packs the weights that are then overwritten
        other.load_state_dict(frozen.state_dict())
    check(other, model)


def test_written_and_moved_weights_are_packed_again() -> None:
    model = network(lambda: nn.Sequential(nn.Conv2d(96, 40, 1)))
    frozen, x = cnnfast.freeze(model), torch.randn(1, 96, 7, 7)
    check(frozen, model, x)
    for change in (lambda w: w.mul_(2), lambda w: w.zero_()):
        with torch.no_grad():
            change(model[0].weight), change(frozen.get_submodule("0").weight)
        check(frozen, model, x)
    model, x = network(lambda: nn.Sequential(nn.Conv2d(96, 40, 1))).double(), x.double()
    frozen = cnnfast.freeze(model.float())
    frozen(x.float())
    check(frozen.double(), model.double(), x)


def test_gradients_of_the_input() -> None:
    model = network().double()
    results = []
    for each in (model, cnnfast.freeze(model)):
        x = images().double().requires_grad_()
        results.append(torch.autograd.grad(each(x).square().sum(), x)[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    assert not list(cnnfast.freeze(model).parameters())[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    frozen = cnnfast.freeze(model)
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-10
    with torch.inference_mode():
        x = images().to(dtype)
        torch.testing.assert_close(frozen(x), model(x), rtol=tolerance, atol=tolerance)


def test_autocast_and_vmap_are_followed() -> None:
    model = network()
    frozen, x = cnnfast.freeze(model), images()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert frozen(x).dtype is model(x).dtype is torch.bfloat16
    with torch.no_grad():
        many = torch.func.vmap(frozen)(x[:, None])
        torch.testing.assert_close(many[:, 0], model(x), rtol=1e-4, atol=1e-4)


def test_compile_and_export() -> None:
    model = network()
    frozen, x = cnnfast.freeze(model), images()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(frozen, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
        exported = torch.export.export(frozen, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = Block(3, 6), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x) if x.sum() > 0 else -self.body(-x)


def test_what_cannot_be_traced_is_called() -> None:
    model = network(Untraceable)
    frozen = cnnfast.freeze(model)
    assert type(frozen) is Untraceable and isinstance(frozen.body, Block) and not layers(frozen)
    assert "fused" in [line.action for line in cnnfast.report(frozen)]
    check(frozen, model)
    check(frozen, model, -images())
    assert frozen.calls == 4
    model = network(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Untraceable()))
    frozen = cnnfast.freeze(model)
    assert isinstance(frozen, fx.GraphModule) and layers(frozen) == ["0"]
    check(frozen, model)


class Walking(nn.Module):
    """What it does with its children no program could."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.body.width = 4

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, layer in self.body.named_children():
            x = layer(x)
            found[name] = x * self.body.width
        return found


def test_children_of_what_cannot_be_traced_keep_their_attributes() -> None:
    model = network(Walking)
    frozen = cnnfast.freeze(model)
    with torch.no_grad():
        torch.testing.assert_close(frozen(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_hooks_keep_what_they_are_on() -> None:
    """Called as before, with what is around it frozen."""
    for name in ("", "stem", "stem.0", "stem.1", "blocks.0", "blocks.1.bn1", "blocks.1.downsample"):
        model, seen = network(), []
        model.get_submodule(name).register_forward_hook(lambda module, args, output, to=seen: to.append(output.clone()))
        frozen = cnnfast.freeze(model)
        assert bool(layers(frozen)) == (name != "")
        check(frozen, model)
        assert len(seen) == 3, name
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    """One convolution in three places, of which two do the same with it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv_1 = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(self.bn(self.conv(x)))
        return self.conv_1(self.conv(x))


def test_shared_layers() -> None:
    model = network(Shared)
    frozen = cnnfast.freeze(model)
    assert sorted(layers(frozen)) == ["conv", "conv_2"]
    check(frozen, model)


class ByKeyword(nn.Module):
    """A call by keyword is no convolution that runs with what follows: it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(input=F.relu(self.bn(self.conv(x))))


class Summed(ByKeyword):
    """The second use of a convolution is a residual of another's."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        a = self.conv(y)
        b = self.bn(self.conv(x))
        return F.relu(a + b)


class InTwoPlaces(nn.Module):
    """One block for two parents, of which one cannot be traced, and a method of it kept."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.other = Holding(self.block)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.block(x))


class Holding(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.blocks = block, [block, block]

    def forward(self, x: Tensor, times: int = 2) -> Tensor:
        for block in self.blocks[:times]:
            x = block(x)
        return x


class Checking(nn.Module):
    """Its trace fails, which is no reason not to trace what is around it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("images")
        return x


class Named(nn.Module):
    """Names that a program has for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.meta, self.code = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(self.meta(self.code(x)))


@pytest.mark.parametrize(
    ("cls", "frozen_layers"),
    [
        (ByKeyword, ["conv_1"]),
        (Summed, ["conv", "conv_1", "conv_2"]),
        (InTwoPlaces, ["block.0"]),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Checking(), nn.Conv2d(4, 4, 1)), ["0", "2"]),
        (Named, []),
    ],
)
def test_unusual_networks(cls: Callable[[], nn.Module], frozen_layers: list[str]) -> None:
    model = network(cls)
    frozen = cnnfast.freeze(model)
    assert sorted(layers(frozen)) == frozen_layers
    check(frozen, model)
    check(cnnfast.freeze(frozen), model)
    around = nn.Sequential(model, nn.Conv2d(model(images()).shape[1], 2, 1)).eval()
    check(cnnfast.freeze(nn.Sequential(frozen, around[1]).eval()), around)


def test_what_arguments_are_is_asked_at_each_call() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return self.conv(x) if skip is None or skip is x else self.conv(x) + skip

    model, x = network(Optional), images()
    frozen = cnnfast.freeze(model)
    for skip in (None, x, x.clone()):
        with torch.no_grad():
            torch.testing.assert_close(frozen(x, skip), model(x, skip), rtol=1e-4, atol=1e-4)


def test_packed_weights_are_forgotten() -> None:
    model, x = network(lambda: nn.Sequential(nn.Conv2d(96, 40, 1))), torch.randn(1, 96, 7, 7)
    frozen = cnnfast.freeze(model)
    conv = frozen.get_submodule("0")
    check(frozen, model, x)
    with torch.no_grad():
        for tensor in (model[0].weight, conv.weight):
            tensor.data.mul_(2)  # nobody is told
    cnnfast.repack(frozen)
    check(frozen, model, x)
    with torch.no_grad():
        model[0].weight.zero_()
    torch.utils.swap_tensors(conv.weight, torch.zeros_like(conv.weight))
    check(frozen, model, x)
    frozen.bfloat16()
    assert not conv._packed


def test_plain_calls_are_not_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second on; but every call that somebody has a say in is."""
    model, x = network(lambda: nn.Sequential(nn.Conv2d(96, 40, 1), nn.ReLU6())), torch.randn(1, 96, 7, 7)
    frozen = cnnfast.freeze(model)
    conv = frozen.get_submodule("0")
    closely: list[Tensor] = []
    are_constants = folding.are_constants
    monkeypatch.setattr(folding, "are_constants", lambda x, *others: closely.append(x) or are_constants(x, *others))

    def is_close(image: Tensor) -> bool:
        closely.clear()
        torch.testing.assert_close(frozen(image), model(image), rtol=1e-4, atol=1e-4)
        return bool(closely)

    with torch.no_grad():
        assert [is_close(x) for _ in range(3)] == [True, False, False]
        assert [is_close(x.contiguous(memory_format=torch.channels_last)) for _ in range(2)] == [True, False]
        with torch.autocast("cpu", torch.bfloat16):
            assert frozen(x).dtype == torch.bfloat16
        assert torch.vmap(frozen)(x[None]).shape == (1, 1, 40, 7, 7) and closely
        with FlopCounterMode(display=False) as counter:
            assert is_close(x)
        assert counter.get_total_flops() == 2 * 2 * 96 * 40 * 49  # ours and the model's
        for tensor in (model[0].weight, conv.weight):
            tensor.mul_(2)
        assert [is_close(x) for _ in range(2)] == [True, False]
        cnnfast.repack(frozen)
        assert [is_close(x) for _ in range(2)] == [True, False]
        with pytest.raises(RuntimeError, match="input"):
            frozen(x.double())
    leaf = x.clone().requires_grad_()
    frozen(leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.any()
    with torch.inference_mode():
        assert not is_close(x)


def test_batch_norm_without_statistics_stays() -> None:
    model = network(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    frozen = cnnfast.freeze(model)
    assert any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    check(frozen, model)


def test_one_image_and_residuals_of_other_shapes() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.relu(self.conv(x) + y)

    model = network(Sum)
    frozen, x = cnnfast.freeze(model), images()
    for a, b in ((x, x), (x[0], x[0]), (x, x[:1]), (x, x[:, :, :1, :1]), (x[:1], x), (x, x.transpose(2, 3).mT)):
        with torch.no_grad():
            torch.testing.assert_close(frozen(a, b), model(a, b), rtol=1e-4, atol=1e-4)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    frozen = cnnfast.freeze(model)
    monkeypatch.setattr(routing.library, "load_error", "for a test")
    check(frozen, model)


def test_report_and_repr() -> None:
    frozen = cnnfast.freeze(network())
    lines = {line.name: line for line in cnnfast.report(frozen)}
    assert lines["stem.0"].action == "frozen" and lines["stem.0"].detail == "conv + relu + pool"
    assert lines["blocks.0.conv3"].detail == "conv + add + relu"
    assert not any(line.action == "left" for line in lines.values())
    assert "kernel_size=(3, 3)" in repr(frozen.get_submodule("stem.0"))


def test_errors() -> None:
    with pytest.raises(TypeError, match="^freeze: model must be an nn.Module that is no ScriptModule, but got Tensor$"):
        cnnfast.freeze(torch.zeros(1))  # type: ignore[arg-type]
    model = network()
    model.blocks[1].bn2.train()
    with pytest.raises(RuntimeError, match=r"^freeze: model must be in evaluation mode .*, but blocks.1.bn2 is in tr"):
        cnnfast.freeze(model)
    with pytest.raises(RuntimeError, match="but it is in training mode"):
        cnnfast.freeze(network().train())
    frozen = cnnfast.freeze(network())
    with pytest.raises(TypeError, match="^conv2d.*input must be a Tensor, but got input=str"):
        frozen("image")
    with pytest.raises(RuntimeError, match="^conv2d: "):
        cnnfast.freeze(network(lambda: nn.Sequential(nn.Conv2d(96, 40, 1))))(torch.zeros(1, 95, 7, 7))
    model = network()
    model.lock = __import__("threading").Lock()
    with pytest.raises(RuntimeError, match="^freeze: model must be copyable, but got Network: "):
        cnnfast.freeze(model)
