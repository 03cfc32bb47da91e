"""convert, revert and report: what stays as it was, what is fused, and what must not be."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import cnnfast
from cnnfast import fusion
from cnnfast.conversion import SWAPS


def _reference(seed: int = 0) -> nn.Sequential:
    """Every stage that can be fused, in both orders of sizes, with statistics that BatchNorm does not start from."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(6, 6, 1),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU6(),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3),
    ).double()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def _input() -> Tensor:
    return torch.randn(4, 3, 20, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _same(ours: nn.Module, theirs: nn.Module, input: Tensor | None = None) -> None:
    """Equal outputs, gradients and buffers, in training, in evaluation, and without gradients."""
    input = _input() if input is None else input
    for training in (True, False):
        results = []
        for original in (ours, theirs):
            model = copy.deepcopy(original.train(training))
            leaf = input.clone().requires_grad_()
            output = model(leaf)
            seed = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(2))
            gradients = torch.autograd.grad(output, [leaf, *model.parameters()], seed, allow_unused=True)
            results.append([output, *gradients, *model.buffers()])
        torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-8)
    with torch.inference_mode():
        torch.testing.assert_close(ours(input), theirs(input), rtol=1e-8, atol=1e-8)


def _fused(model: nn.Module) -> list[str]:
    return [change.detail for change in cnnfast.report(model) if change.action == "fused"]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_results_are_the_models(fuse: bool, channels_last: bool) -> None:
    model = _reference()
    converted = cnnfast.convert(copy.deepcopy(model), fuse=fuse, inplace=True)
    input = _input().contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    _same(converted, model, input)
    assert _fused(converted) == (["0 + 1 + 2 + 3", "4 + 5", "6 + 7 + 8"] if fuse else [])


def test_fused_groups_run_on_the_fused_ops() -> None:
    model = cnnfast.convert(_reference().eval())
    cnnfast.fallbacks(reset=True)
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(_input())
    names = [event.name for event in profile.events() or []]
    assert "cnnfast::conv2d_relu_max_pool2d_forward" in names
    assert not any(part in name for name in names for part in ("batch_norm", "aten::relu", "hardtanh", "clamp"))
    assert not cnnfast.fallbacks()


def test_relu6_of_other_bounds() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()).eval()
    model[2].max_val = 0.5
    converted = cnnfast.convert(model)
    input = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(converted(input), model(input))


def test_a_layer_with_a_forward_of_its_own_runs_by_itself() -> None:
    model = cnnfast.convert(_reference().eval())
    calls: list[Tensor] = []
    original = model[1].forward
    model[1].forward = lambda input: calls.append(input) or original(input)
    with torch.no_grad():
        torch.testing.assert_close(model(_input()), _reference().eval()(_input()))
    assert len(calls) == 1


def test_original_and_copy_share_their_tensors() -> None:
    model = _reference()
    converted = cnnfast.convert(model)
    assert converted is not model and type(model[0]) is nn.Conv2d and isinstance(converted, nn.Sequential)
    assert list(converted.state_dict()) == list(model.state_dict())
    for ours, theirs in zip(converted.parameters(), model.parameters(), strict=True):
        assert ours is theirs
    for ours, theirs in zip(converted.buffers(), model.buffers(), strict=True):
        assert ours is theirs
    model[0].weight.data.mul_(2)  # not seen by the version counter
    model.eval(), converted.eval()
    with torch.no_grad():
        torch.testing.assert_close(converted(_input()), model(_input()))


def test_in_place_keeps_every_object() -> None:
    model = _reference()
    layers = list(model)
    model[0].weight.requires_grad_(False)
    assert cnnfast.convert(model, inplace=True) is model
    assert list(model) == layers and not model[0].weight.requires_grad
    assert all(isinstance(layer, tuple(SWAPS.values())) for layer in layers if isinstance(layer, tuple(SWAPS)))


def test_revert_undoes() -> None:
    model = _reference()
    types = [type(module) for module in model.modules()]
    converted = cnnfast.convert(model)
    assert [type(module) for module in cnnfast.revert(converted).modules()] == types
    assert "_fusion" not in vars(converted) and not _fused(converted)
    _same(converted, model)


def test_report_says_what_was_not_converted() -> None:
    model = _reference()
    for report in (cnnfast.report(model), cnnfast.report(cnnfast.revert(cnnfast.convert(model)))):
        assert {change.action for change in report} == {"unfused", "left"}
        assert {change.detail for change in report} == {"none of its convolutions was swapped", "not converted"}
    (unfused,) = [change for change in cnnfast.report(cnnfast.convert(model, fuse=False)) if change.action == "unfused"]
    assert unfused == ("", "unfused", "converted with fuse=False")


def test_nothing_to_convert_is_returned_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Flatten())
    with caplog.at_level(logging.WARNING, "cnnfast"):
        assert cnnfast.convert(model) is model
    assert caplog.messages == ["convert: Sequential has no layer that cnnfast could take over: unchanged"]
    assert str(cnnfast.report(model)) == "nothing here that cnnfast has a kernel for"


@pytest.mark.parametrize("made", [cnnfast.convert, lambda model: cnnfast.freeze(model.eval())])
def test_converted_again_is_returned_and_said(
    made: Callable[[nn.Module], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model = made(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True)))
    with caplog.at_level(logging.WARNING, "cnnfast"):
        assert cnnfast.convert(model) is model
    (message,) = caplog.messages
    assert message.endswith("Sequential is converted already: unchanged")


def test_report_tells_of_a_relu_in_place() -> None:
    model = cnnfast.convert(nn.Sequential(nn.ReLU(inplace=True), nn.ReLU()))
    assert [change.detail for change in cnnfast.report(model)] == ["ReLU, in place: torch's own unless fused", "ReLU"]


def test_convert_twice_is_convert_once() -> None:
    once = cnnfast.convert(_reference())
    before = str(cnnfast.report(once))
    assert cnnfast.convert(once, inplace=True) is once and str(cnnfast.report(once)) == before


@pytest.mark.parametrize("function", [cnnfast.convert, cnnfast.revert, cnnfast.report])
def test_only_modules(function: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match=rf"{function.__name__}: model must be an nn.Module.*but got list"):
        function([])


def test_no_scripts() -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.ReLU()), torch.ones(1))
    with pytest.raises(TypeError, match=r"convert: model must be an nn.Module that is no ScriptModule, but got Top"):
        cnnfast.convert(scripted)


def test_what_cannot_be_copied_says_how() -> None:
    model = _reference()
    model.generator = (item for item in [1])
    with pytest.raises(RuntimeError, match="convert: model must be copyable unless inplace=True, but got Sequential"):
        cnnfast.convert(model)
    assert cnnfast.convert(model, inplace=True) is model


# Modules that a fusion would break ----------------------------------------------------------------------------------


class Block(nn.Module):
    """torchvision's BasicBlock in short: one ReLU called twice, the second time on a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.conv2(out) + x)
        return F.dropout(out, self.p, self.training)


class Branches(Block):
    """The convolution's output is needed twice."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        return F.relu(out) + out


class Functional(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 3, stride=2, padding=1)
        return torch.relu(self.conv2(x)).tanh()


class WithIndices(Block):
    def forward(self, x: Tensor) -> Tensor:
        output, indices = F.max_pool2d(F.relu(self.conv1(x)), 2, return_indices=True)
        return output * indices


def _block(cls: type[Block]) -> Block:
    torch.manual_seed(3)
    return cls().double()


@pytest.mark.parametrize(
    ("cls", "groups"),
    [
        (Block, ["conv1 + bn1 + relu", "conv2 + add + relu"]),
        (Branches, []),
        (Functional, ["conv1 + relu + max_pool2d", "conv2 + relu"]),
        (WithIndices, ["conv1 + relu"]),
    ],
)
def test_data_flow_decides(cls: type[Block], groups: list[str]) -> None:
    model = _block(cls)
    model.p = 0.0
    converted = cnnfast.convert(copy.deepcopy(model), inplace=True)
    assert _fused(converted) == groups and isinstance(converted, cls) and type(converted).__name__ == cls.__name__
    _same(converted, model)


def test_dropout_follows_the_mode_after_conversion() -> None:
    model = cnnfast.convert(_block(Block).eval())
    input = _input()
    assert (model(input) == 0).double().mean() < 0.7
    torch.manual_seed(0)
    dropped = model.train()(input)
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, cnnfast.revert(copy.deepcopy(model))(input))
    model.p = 1.0  # baked into the trace, and therefore compared at each call
    assert not model(input).any()


def test_hooks_see_what_they_saw() -> None:
    """Kept by the conversion, and noticed when they come later."""
    model = _reference().eval()
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    converted = cnnfast.convert(model)
    handle = converted[5].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        converted(_input())
        ours = seen.copy()
        handle.remove()
        seen.clear()
        model[5].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(_input())
    assert ours[1].min() < 0 and len(ours) == len(seen) == 2
    torch.testing.assert_close(ours, seen)


def test_children_are_themselves_when_called_alone() -> None:
    """A layer, and a slice that ends before the ReLU: features are what they were."""
    model = _reference().eval()
    converted = cnnfast.convert(model)
    with torch.no_grad():
        torch.testing.assert_close(converted[0](_input()), model[0](_input()))
        torch.testing.assert_close(converted[:2](_input()), model[:2](_input()))
        torch.testing.assert_close(converted[:6](_input()), model[:6](_input()))
    sliced = converted[:6]
    assert not _fused(sliced) and _fused(cnnfast.convert(sliced)) == ["0 + 1 + 2 + 3", "4 + 5"]


def test_changes_after_conversion_are_seen() -> None:
    model = cnnfast.convert(_reference().eval())
    plain = copy.deepcopy(cnnfast.revert(copy.deepcopy(model)))
    for changed in (model, plain):
        changed.append(nn.Flatten())
        changed[4] = nn.Conv2d(8, 6, 3, stride=2, padding=1).double()
        changed[5] = nn.Tanh()
    plain[4].load_state_dict(model[4].state_dict())
    _same(model, plain)
    assert model(_input()).dim() == 2


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, torch.nn.utils.spectral_norm])
def test_parametrized_layers_are_left_alone(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = _reference()
    wrap(model[4])
    converted = cnnfast.convert(copy.deepcopy(model), inplace=True)
    if wrap is parametrizations.weight_norm:
        left = [change for change in cnnfast.report(converted) if change.action == "left"]
        assert [(change.name, change.detail) for change in left] == [
            ("4", "ParametrizedConv2d is not one of torch's own layers")
        ]
    model.eval(), converted.eval()
    with torch.no_grad():
        torch.testing.assert_close(converted(_input()), model(_input()))


def test_pruned_after_conversion() -> None:
    model = cnnfast.convert(_reference().eval())
    prune.l1_unstructured(model[4], "weight", 0.5)
    with torch.no_grad():
        pruned = model(_input())
        prune.remove(model[4], "weight")
        torch.testing.assert_close(pruned, model(_input()))


class Mine(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


def test_subclasses_are_left_alone() -> None:
    model = nn.Sequential(Mine(3, 4, 3), nn.ReLU(), nn.LazyConv2d(2, 1), nn.ReLU())
    converted = cnnfast.convert(model)
    assert type(converted[0]) is Mine and not _fused(converted)
    with torch.no_grad():
        torch.testing.assert_close(converted(_input().float()), model(_input().float()))


# What a converted model goes through --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_stay_fused(how: str) -> None:
    model = cnnfast.convert(_reference())
    if how == "deepcopy":
        again = copy.deepcopy(model)
    elif how == "pickle":
        again = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    assert fusion.is_fused(again) and _fused(again) == _fused(model)
    _same(again, cnnfast.revert(copy.deepcopy(model)))


def test_half_precision_is_not_folded() -> None:
    """A folded weight would be rounded once more."""
    model = _reference().to(torch.bfloat16).eval()
    with torch.no_grad():
        ours, theirs = cnnfast.convert(model)(_input().bfloat16()), model(_input().bfloat16())
        exact = _reference().eval()(_input())
    assert (ours.double() - exact).abs().max() <= 1.5 * (theirs.double() - exact).abs().max()


def test_autocast() -> None:
    model = _reference().float().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = cnnfast.convert(model)(_input().float()), model(_input().float())
    exact = _reference().eval()(_input())
    assert ours.dtype is theirs.dtype is torch.bfloat16
    assert (ours.double() - exact).abs().max() <= 2 * (theirs.double() - exact).abs().max()


def test_functional_call_and_grad() -> None:
    model = _reference().eval()
    converted = cnnfast.convert(model)
    parameters = {name: parameter * 2 for name, parameter in model.named_parameters()}

    def loss(net: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda values: torch.func.functional_call(net, values, (_input(),)).square().sum()

    torch.testing.assert_close(torch.func.grad(loss(converted))(parameters), torch.func.grad(loss(model))(parameters))


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training: bool) -> None:
    model = _reference().train(training)
    converted = cnnfast.convert(copy.deepcopy(model), inplace=True)
    compiled = torch.compile(copy.deepcopy(converted), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(_input()), model(_input()))


def test_export_and_onnx(tmp_path_factory: pytest.TempPathFactory) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = _reference().float().eval()
    converted = cnnfast.convert(model)
    input = _input().float()
    exported = torch.export.export(converted, (input,))
    torch.testing.assert_close(exported.module()(input), model(input))
    program = torch.onnx.export(converted, (input,), dynamo=True, verbose=False)
    assert program is not None
    assert {node.domain for node in program.model_proto.graph.node} == {""}
    assert {"Conv", "Relu", "MaxPool"} <= {node.op_type for node in program.model_proto.graph.node}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(input).detach(), rtol=1e-4, atol=1e-5)
