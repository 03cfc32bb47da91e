"""Blocks in training: BatchNorm, sum and activation as one op, with the modules' outputs, gradients and statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from blocks_testing import FORMATS, Basic, Inverted, Shrinking, block_input, shuffled
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import cnnfast

BLOCKS = [Basic, Shrinking, Inverted]


class Stem(nn.Sequential):
    """A max-pool, and an activation that does more than clip."""

    def __init__(self) -> None:
        conv, last = nn.Conv2d(8, 12, 3, bias=False), nn.Conv2d(12, 12, 1)
        super().__init__(
            conv, nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(3, 2, 1), last, nn.BatchNorm2d(12), nn.SiLU()
        )


def training_models(cls: type[nn.Module], dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """The converted model, and the model, with parameters of their own."""
    torch.manual_seed(0)
    model = shuffled(cls()).to(dtype)
    return cnnfast.convert(copy.deepcopy(model)), model


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = model(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (output * weights.to(output)).sum().backward()
    assert x.grad is not None
    return output, x.grad


def check_step(ours: nn.Module, theirs: nn.Module, x: Tensor | None = None) -> None:
    x = block_input().double() if x is None else x
    (output, grad), (expected, expected_grad) = step(ours, x), step(theirs, x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert output.stride() == expected.stride() and output.dtype == expected.dtype
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


def counted(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """How many BatchNorms a step of the model has run on own kernels, and how many on torch's."""
    with torch.profiler.profile() as profile:
        step(model, x)
    names = [event.name for event in profile.events() or []]
    assert names.count("cnnfast::batch_norm_forward") == names.count("cnnfast::batch_norm_backward")
    return names.count("cnnfast::batch_norm_forward"), names.count("aten::native_batch_norm")


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("cls", [*BLOCKS, Stem])
def test_every_norm_runs_with_what_follows(cls: type[nn.Module], layout: str) -> None:
    ours, theirs = training_models(cls)
    x = block_input(layout).double()
    for _ in range(2):
        check_step(ours, theirs, x)
    assert counted(ours, x) == (len(norms(ours)), 0)


def test_what_follows_is_no_op_of_its_own() -> None:
    ours, _ = training_models(Basic)
    with torch.profiler.profile() as profile:
        step(ours, block_input().double())
    names = {event.name for event in profile.events() or []}
    assert not any(part in name for name in names for part in ("relu", "threshold", "clamp", "aten::batch_norm"))


@pytest.mark.parametrize("of", ["bn1", "relu"])
def test_hooks_see_what_they_saw(of: str) -> None:
    ours, theirs = training_models(Basic)
    seen: list[list[Tensor]] = []
    for model in (ours, theirs):
        shapes: list[Tensor] = []
        getattr(model, of).register_forward_hook(
            lambda module, args, output, to=shapes: to.append(output.detach().clone())
        )
        seen.append(shapes)
    check_step(ours, theirs)
    assert len(seen[0]) == len(seen[1]) == (1 if of == "bn1" else 2)
    for mine, other in zip(*seen, strict=True):
        torch.testing.assert_close(mine, other)
    assert counted(ours, block_input().double()) == ((1, 1) if of == "bn1" else (2, 0))


class Twice(nn.Module):
    """One BatchNorm on both ways: which batch it takes down first shows in its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        return out + self.bn(self.other(x))


class Reshaped(nn.Module):
    def __init__(self, residual: Callable[[Tensor], Tensor], swapped: bool = False) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.residual, self.swapped = residual, swapped

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        return self.relu(residual + out if self.swapped else out + residual)


def test_one_norm_on_both_ways() -> None:
    check_step(*training_models(Twice))


def test_a_norm_called_twice() -> None:
    """By torch's op, which keeps the running statistics for backward, and by ours."""
    results = []
    for model in training_models(Basic):
        x = block_input().double()
        out = model(x).sum() + model.bn1(x).square().sum() + model(x.flip(0)).square().sum()
        out.backward()
        results.append([*(parameter.grad for parameter in model.parameters()), *model.buffers()])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("swapped", [False, True], ids=["sum", "swapped"])
@pytest.mark.parametrize(
    "residual",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x[:1],
        lambda x: x.float(),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["same", "channels_last", "means", "one_image", "float32", "strange_strides"],
)
def test_any_residual(residual: Callable[[Tensor], Tensor], swapped: bool) -> None:
    ours, theirs = training_models(lambda: Reshaped(residual, swapped))  # type: ignore[arg-type]
    x = block_input().double()
    check_step(_Of(ours, residual), _Of(theirs, residual), x)


class _Of(nn.Module):
    def __init__(self, model: nn.Module, residual: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.residual = model, residual

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, self.residual(x))


def test_parameters_must_not_change_before_backward() -> None:
    ours, _ = training_models(Basic)
    output = ours(block_input().double())
    with torch.no_grad():
        ours.bn1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_what_torch_does_not_keep_may_change_before_backward() -> None:
    """The shift, by an optimizer of shifts alone; a sum that ReLU6 has clipped."""
    for cls in (Basic, SumReLU6):
        results = []
        for model in training_models(cls):
            x = block_input().double().requires_grad_()
            output = model(x)
            with torch.no_grad():
                for norm in norms(model):
                    norm.bias.add_(1)
            if cls is SumReLU6:
                output = output.mul_(2)
            output.square().sum().backward()
            results.append([x.grad, *(parameter.grad for parameter in model.parameters())])
        for mine, other in zip(*results, strict=True):
            torch.testing.assert_close(mine, other)


class SumReLU6(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + x)


@pytest.mark.parametrize("shape", [(4, 8, 1, 1), (2, 8, 5, 1), (2, 8, 2, 2)], ids=str)
@pytest.mark.parametrize("swapped", [False, True], ids=["sum", "swapped"])
def test_strides_of_shapes_that_are_laid_out_alike(shape: tuple[int, ...], swapped: bool) -> None:
    for memory_format in FORMATS.values():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for residual in (lambda x: x, lambda x: x.contiguous(memory_format=torch.channels_last)):
            ours, theirs = training_models(lambda residual=residual: Reshaped(residual, swapped))  # type: ignore[arg-type]
            x = x.contiguous(memory_format=memory_format)
            check_step(_Of(ours, residual), _Of(theirs, residual), x)
            with torch.no_grad():
                outputs = [_Of(model.eval(), residual)(x) for model in (ours, theirs)]
            assert outputs[0].stride() == outputs[1].stride()


def test_what_torch_refuses() -> None:
    for change, message in (
        ({"eps": 0.0}, "batch_norm eps must be positive"),
        ({"running_var": None}, "running_mean"),
    ):
        for model in training_models(Basic):
            for name, value in change.items():
                setattr(model.bn1, name, value)
            with pytest.raises((ValueError, RuntimeError), match=message):
                model(block_input().double())


def test_statistics_that_are_shared() -> None:
    """By another BatchNorm, on the residual's way: in the order of the modules."""
    ours, theirs = training_models(Shrinking)
    for model in (ours, theirs):
        model.downsample[1].running_mean = model.bn2.running_mean
        model.downsample[1].running_var = model.bn2.running_var
    check_step(ours, theirs)


@pytest.mark.parametrize("cls", BLOCKS)
def test_gradients_of_gradients(cls: type[nn.Module]) -> None:
    """A penalty on the input's gradient, as of a critic."""
    results = []
    for model in training_models(cls):
        x = block_input().double().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        results.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
def test_checkpoints(reentrant: bool) -> None:
    x = block_input().double()
    results = []
    for model in training_models(Basic):
        leaf = x.clone().requires_grad_()
        checkpoint(model, leaf, use_reentrant=reentrant).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


def test_without_gradients_statistics_are_taken_down() -> None:
    ours, theirs = training_models(Basic)
    x = block_input().double()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


def test_frozen_statistics_are_torchs() -> None:
    """A BatchNorm in evaluation with gradients wanted."""
    ours, theirs = training_models(Basic)
    for model in (ours, theirs):
        model.bn1.eval()
    check_step(ours, theirs)
    assert counted(ours, block_input().double()) == (1, 1)


def test_one_value_of_a_channel() -> None:
    for model in training_models(Stem):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            model(torch.zeros(1, 8, 3, 3, dtype=torch.float64))


def test_autocast() -> None:
    """BatchNorm of a bfloat16 convolution, with statistics in float32, as torch's."""
    ours, theirs = training_models(Basic, torch.float32)
    x = block_input()
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = ours(x), theirs(x)
        assert output.dtype == expected.dtype
        torch.testing.assert_close(output, expected, rtol=2**-6, atol=2**-6)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=2**-6, atol=2**-6)


def test_what_looks_at_operations_sees_torchs() -> None:
    ours, theirs = training_models(Basic)
    x, counts = block_input().double(), []
    for model in (ours, theirs):
        with FlopCounterMode(display=False) as counter:
            step(model, x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_statistics_that_were_folded_are_folded_anew() -> None:
    """Evaluation between two steps of training."""
    ours, theirs = training_models(Basic)
    for _ in range(3):
        check_step(ours.train(), theirs.train())
        with torch.no_grad():
            x = block_input().double()
            torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
