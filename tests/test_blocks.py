"""Fused blocks with a residual, SiLU or Hardswish: one op in inference, the modules wherever somebody could tell."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from blocks_testing import FORMATS, Basic, Inverted, Shrinking, block_input, check, groups, models, ops, shuffled
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import cnnfast
from cnnfast import autograd, fusion


class Nested(nn.Module):
    """EfficientNet's and MobileNet-v3's: the convolution is in a container of a container."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.SiLU(inplace=True)),
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.Hardswish(inplace=True)),
            nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)),
        )

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        result += x
        return result


class Shortcut(Basic):
    """The residual is computed after the convolution, and its container ends in one as well."""

    def __init__(self) -> None:
        super().__init__(8, 12, 2)
        self.shortcut, self.downsample = self.downsample, None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


FUSED: dict[type[nn.Module], list[str]] = {
    Basic: ["conv1 + bn1 + relu", "conv2 + bn2 + add + relu"],
    Shrinking: ["conv1 + bn1 + relu", "conv2 + bn2 + add + relu"],
    Inverted: ["conv.1 + conv.2 + add"],
    Nested: ["block.2.0 + block.2.1 + add"],
    Shortcut: ["conv1 + bn1 + relu", "conv2 + bn2 + add + relu"],
}
every_block = pytest.mark.parametrize("cls", FUSED)


@pytest.mark.parametrize("layout", FORMATS)
@every_block
def test_one_op_in_inference(cls: type[nn.Module], layout: str) -> None:
    ours, theirs = models(cls)
    assert groups(ours) == FUSED[cls]
    assert [line.detail for line in cnnfast.report(ours) if line.name == "" and line.action == "fused"] == FUSED[cls]
    ours, theirs = (model.to(memory_format=FORMATS[layout]) for model in (ours, theirs))
    check(ours, theirs, block_input(layout))
    names = ops(ours, block_input(layout))
    unfused = ("aten::add", "aten::add_", "aten::relu", "aten::silu", "aten::hardswish", "batch_norm", "hardtanh")
    assert not any(part in name for name in names for part in unfused if not name.startswith("cnnfast"))


@every_block
def test_training_and_gradients_are_the_models(cls: type[nn.Module]) -> None:
    for training in (True, False):
        results = []
        for model in models(cls):
            model.train(training).double()
            x = block_input().double().requires_grad_()
            output = model(x)
            results.append([output, *torch.autograd.grad(output.sum(), [x, *model.parameters()]), *model.buffers()])
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@every_block
def test_the_residual_alone_may_want_a_gradient(cls: type[nn.Module]) -> None:
    results = []
    for model in models(cls):
        x = block_input().requires_grad_()
        output = model.requires_grad_(False)(x)
        results.append([output, *torch.autograd.grad(output.sum(), x)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@every_block
def test_modes_follow(cls: type[nn.Module]) -> None:
    ours, theirs = models(cls)
    for training in (True, False, True):
        check(ours.train(training), theirs.train(training))
    ours.eval(), theirs.eval()
    for model in (ours, theirs):  # one BatchNorm alone
        [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][-1].train()
    check(ours, theirs)


@every_block
def test_hooks_see_what_they_saw(cls: type[nn.Module]) -> None:
    """On every module in turn: the same calls in the same order, with the same values."""
    ours, theirs = models(cls)
    for name in [name for name, _ in ours.named_modules() if name]:
        seen: list[list[Tensor]] = []
        for model in (ours, theirs):
            values: list[Tensor] = []
            handle = model.get_submodule(name).register_forward_hook(
                lambda module, args, output, to=values: to.append(output.clone())
            )
            check(model, model)
            handle.remove()
            seen.append(values)
        assert len(seen[0]) == len(seen[1]), name
        torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)
        check(ours, theirs)


@every_block
def test_hooks_on_all_modules(cls: type[nn.Module]) -> None:
    orders: list[list[str]] = []
    for model in models(cls):
        order: list[str] = []
        names = {id(module): name for name, module in model.named_modules()}
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, output, names=names, to=order: to.append(names[id(module)])
        )
        with torch.no_grad():
            model(block_input())
        handle.remove()
        orders.append(order)
    assert orders[0] == orders[1]


@every_block
def test_each_module_hooked_is_called_in_order(cls: type[nn.Module]) -> None:
    orders: list[list[str]] = []
    for model in models(cls):
        order: list[str] = []
        for name, module in model.named_modules():
            module.register_forward_hook(lambda module, args, output, name=name, to=order: to.append(name))
        with torch.no_grad():
            model(block_input())
        orders.append(order)
    assert orders[0] == orders[1]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@every_block
def test_copies_stay_fused(cls: type[nn.Module], how: str) -> None:
    ours, theirs = models(cls)
    check(ours, theirs)
    again = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    assert groups(again) == FUSED[cls]
    check(again, theirs)


@every_block
def test_revert(cls: type[nn.Module]) -> None:
    ours, theirs = models(cls)
    types = [type(module) for module in theirs.modules()]
    assert [type(module) for module in cnnfast.revert(ours).modules()] == types


def test_another_layer_on_the_way_of_the_residual() -> None:
    """One that writes to what the convolution reads: then it must not run before it."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)
            self.shortcut = nn.Sequential(nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x)
            out += self.shortcut(x)
            return out

    ours, theirs = models(Single)
    assert groups(ours) == ["conv + add"]
    check(ours, theirs)
    for model in (ours, theirs):
        model.shortcut[0] = nn.ReLU(inplace=True)
    check(ours, theirs)
    for model in (ours, theirs):
        model.shortcut[0] = nn.Identity()
        model.shortcut[0].register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
    with torch.no_grad():
        torch.testing.assert_close(ours(block_input()), theirs(block_input()), rtol=1e-4, atol=1e-4)


def test_a_container_with_a_forward_of_its_own_is_called() -> None:
    class Negated(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    ours, theirs = models(Inverted)
    for model in (ours, theirs):
        model.conv = Negated(*model.conv)
    check(ours, theirs)
    ours, theirs = models(Inverted)
    for model in (ours, theirs):
        forward = model.conv.forward
        model.conv.forward = lambda x, forward=forward: 2 * forward(x)
    check(ours, theirs)


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_activations(activation: Callable[..., nn.Module], norm: bool, inplace: bool) -> None:
    layers = [nn.Conv2d(8, 12, 3), *([nn.BatchNorm2d(12)] if norm else []), activation(inplace=inplace)]
    torch.manual_seed(0)
    theirs = shuffled(nn.Sequential(*layers)).eval()
    ours = cnnfast.convert(theirs)
    assert groups(ours) == [" + ".join(map(str, range(len(layers))))]
    check(ours, theirs)
    assert not any(
        name in ("aten::silu", "aten::silu_", "aten::hardswish", "aten::hardswish_")
        for name in ops(ours, block_input())
    )
    for training in (True, False):
        results = []
        for model in (ours, theirs):
            model.train(training).double()
            x = block_input().double().requires_grad_()
            output = copy.deepcopy(model)(x)
            results.append([output, *torch.autograd.grad(output.square().sum(), x)])
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_two_branches_of_one_sum() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.left(x) + self.right(x))

    ours, theirs = models(Both)
    assert sum("add + relu" in group for group in groups(ours)) == 1
    check(ours, theirs)


def test_what_is_kept_packed_serves_sums() -> None:
    ours, theirs = models(Inverted)
    check(ours, theirs)
    with mock.patch.object(autograd, "_conv2d_pack_weight", wraps=autograd._conv2d_pack_weight) as pack:
        check(ours, theirs)
    pack.assert_not_called()


def test_operators_in_place_keep_the_object() -> None:
    """Unfused, as with a broadcast residual: the sum is written where the convolution's result is."""
    begun = torch.zeros(2, 3)
    add = fusion.blocks.Sum(operator.iadd, swapped=False)
    assert fusion.blocks.end_block(begun, torch.ones(3), add, None) is begun


def test_compiled() -> None:
    ours, theirs = models(Basic)
    with torch.no_grad():
        compiled = torch.compile(ours, backend="eager")
        torch.testing.assert_close(compiled(block_input()), theirs(block_input()), rtol=1e-4, atol=1e-4)


def test_operations_are_counted_as_the_models() -> None:
    ours, theirs = models(Basic)
    counts = []
    for model in (ours, theirs):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(block_input())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_compiled_branch_is_called() -> None:
    ours, theirs = models(Inverted)
    graphs: list[fx.GraphModule] = []
    ours.conv.compile(backend=lambda graph, inputs: graphs.append(graph) or graph)
    check(ours, theirs)
    assert graphs
