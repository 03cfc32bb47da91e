"""The modules: what torch.nn's do, with the same weights, text and manners."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import cnnfast


class Pair(NamedTuple):
    """A module of ours, the same in torch's, and an input's shape."""

    ours: type[nn.Module]
    theirs: type[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]

    def modules(self) -> tuple[nn.Module, nn.Module]:
        ours, theirs = self.ours(*self.args, **self.kwargs), self.theirs(*self.args, **self.kwargs)
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs


def _conv(*args: Any, shape: tuple[int, ...] = (2, 4, 8, 9), **kwargs: Any) -> Pair:
    return Pair(cnnfast.Conv2d, nn.Conv2d, args, kwargs, shape)


def _transpose(*args: Any, shape: tuple[int, ...] = (2, 4, 5, 6), **kwargs: Any) -> Pair:
    return Pair(cnnfast.ConvTranspose2d, nn.ConvTranspose2d, args, kwargs, shape)


PAIRS = [
    _conv(4, 6, 3),
    _conv(4, 6, kernel_size=(3, 2), stride=2, padding=1, bias=False),
    _conv(4, 8, 3, padding="same", groups=4),
    _conv(4, 6, 3, 1, "valid", 2),
    _conv(4, 6, 3, shape=(4, 8, 9)),
    _conv(4, 6, 3, shape=(0, 4, 8, 9)),
    *(_conv(4, 6, 3, padding=(2, 1), padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
    _conv(4, 6, (3, 4), padding="same", padding_mode="reflect"),
    _conv(4, 6, 3, dtype=torch.float64),
    _transpose(4, 6, 3),
    _transpose(4, 6, (2, 3), stride=(2, 3), padding=1, output_padding=(0, 1), groups=2, bias=False, dilation=2),
    _transpose(4, 6, 3, shape=(4, 5, 6)),
    Pair(cnnfast.ReLU, nn.ReLU, (), {}, (2, 4, 8, 9)),
    Pair(cnnfast.ReLU, nn.ReLU, (True,), {}, (2, 4, 8, 9)),
    Pair(cnnfast.MaxPool2d, nn.MaxPool2d, (2,), {}, (2, 4, 8, 9)),
    Pair(cnnfast.MaxPool2d, nn.MaxPool2d, (3, 2, 1, 1), {"ceil_mode": True}, (4, 8, 9)),
    Pair(cnnfast.AvgPool2d, nn.AvgPool2d, (2,), {}, (2, 4, 8, 9)),
    Pair(cnnfast.AvgPool2d, nn.AvgPool2d, ((3, 2), 2, 1, True, False), {}, (2, 4, 8, 9)),
    Pair(cnnfast.AvgPool2d, nn.AvgPool2d, (2,), {"divisor_override": 3}, (2, 4, 8, 9)),
]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p.theirs.__name__}{p.args}{p.kwargs}{p.shape}")


class Fused(NamedTuple):
    """A fused module and what it stands for after its torch convolution."""

    module: type[nn.Conv2d]
    kwargs: dict[str, Any]
    after: list[nn.Module]


FUSED = [
    Fused(cnnfast.ConvReLU2d, {}, [nn.ReLU()]),
    Fused(cnnfast.ConvReLUMaxPool2d, {}, [nn.ReLU(), nn.MaxPool2d(2)]),
    Fused(
        cnnfast.ConvReLUMaxPool2d,
        {"pool_kernel_size": (3, 2), "pool_stride": 2, "pool_padding": 1, "pool_dilation": 1, "ceil_mode": True},
        [nn.ReLU(), nn.MaxPool2d((3, 2), 2, 1, ceil_mode=True)],
    ),
]
every_fused = pytest.mark.parametrize("fused", FUSED, ids=lambda f: f"{f.module.__name__}{f.kwargs}")


def _run(module: nn.Module, input: Tensor) -> list[Tensor]:
    leaf = input.clone().requires_grad_()
    output = module(leaf * 1)  # ReLU(inplace=True) may not write into a leaf
    return [output, *torch.autograd.grad(output.square().sum(), [leaf, *module.parameters()])]


@every_pair
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_as_torch(pair: Pair) -> None:
    ours, theirs = pair.modules()
    assert repr(ours) == repr(theirs)
    input = torch.randn(pair.shape, dtype=pair.kwargs.get("dtype", torch.float32))
    torch.testing.assert_close(_run(ours, input), _run(theirs, input), rtol=1e-4, atol=1e-4)


@every_fused
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_fused_as_its_parts(fused: Fused, padding_mode: str) -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1, padding_mode=padding_mode)
    ours = fused.module(3, 5, 3, padding=1, padding_mode=padding_mode, **fused.kwargs)
    ours.load_state_dict(conv.state_dict())
    theirs = nn.Sequential(conv, *fused.after)
    for shape in ((2, 3, 8, 9), (3, 8, 9), (0, 3, 8, 9)):
        input = torch.randn(shape)
        torch.testing.assert_close(_run(ours, input), _run(theirs, input), rtol=1e-4, atol=1e-4)


def test_repr_of_the_fused_modules() -> None:
    text = repr(nn.Conv2d(1, 12, 3, padding=1)).removeprefix("Conv2d").removesuffix(")")
    assert repr(cnnfast.ConvReLU2d(1, 12, 3, padding=1)) == f"ConvReLU2d{text})"
    assert repr(cnnfast.ConvReLUMaxPool2d(1, 12, 3, padding=1)) == (
        f"ConvReLUMaxPool2d{text}, pool_kernel_size=2, pool_stride=2, pool_padding=0, pool_dilation=1, ceil_mode=False)"
    )


@pytest.mark.parametrize("ours", [cnnfast.Conv2d, cnnfast.ConvReLU2d, cnnfast.ConvReLUMaxPool2d])
def test_weights_go_both_ways(ours: type[nn.Conv2d]) -> None:
    mine, theirs = ours(2, 3, 3), nn.Conv2d(2, 3, 3)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(mine.state_dict())
    assert torch.equal(theirs.weight, mine.weight) and torch.equal(theirs.bias, mine.bias)
    file = io.BytesIO()
    torch.save(nn.Conv2d(2, 3, 3).state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    mine.load_state_dict(saved)
    assert torch.equal(mine.weight, saved["weight"])


def test_same_initial_weights_from_the_same_seed() -> None:
    torch.manual_seed(3)
    mine = cnnfast.ConvReLUMaxPool2d(2, 3, 3)
    torch.manual_seed(3)
    assert torch.equal(mine.weight, nn.Conv2d(2, 3, 3).weight)


@every_pair
def test_copies(pair: Pair) -> None:
    ours, _ = pair.modules()
    input = torch.randn(pair.shape, dtype=pair.kwargs.get("dtype", torch.float32))
    expected = ours(input.clone())
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        assert torch.equal(twin(input.clone()), expected)


@every_fused
def test_copies_of_fused_modules(fused: Fused) -> None:
    ours = fused.module(2, 3, 3, **fused.kwargs)
    input = torch.randn(1, 2, 9, 9)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert repr(twin) == repr(ours)
        assert torch.equal(twin(input), ours(input))


def test_hooks_run() -> None:
    module = cnnfast.ConvReLUMaxPool2d(2, 3, 3)
    seen: list[str] = []
    module.register_forward_pre_hook(lambda module, args: seen.append("before"))
    module.register_forward_hook(lambda module, args, output: seen.append("after"))
    module.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    module.weight.register_hook(lambda grad: seen.append("weight"))
    module(torch.randn(1, 2, 6, 6, requires_grad=True)).sum().backward()
    assert seen[:2] == ["before", "after"]
    assert sorted(seen[2:]) == ["backward", "weight"]


def test_output_size() -> None:
    ours, theirs = _transpose(4, 6, 3, stride=2, padding=1).modules()
    input = torch.randn(2, 4, 5, 6)
    for output_size in ((9, 11), [10, 12]):
        torch.testing.assert_close(ours(input, output_size), theirs(input, output_size))
    with pytest.raises(ValueError, match="requested an output size"):
        ours(input, (20, 20))


def test_return_indices() -> None:
    input = torch.randn(2, 4, 8, 9)
    for ours, theirs in zip(
        cnnfast.MaxPool2d(2, return_indices=True)(input), nn.MaxPool2d(2, return_indices=True)(input)
    ):
        assert torch.equal(ours, theirs)


def test_parametrizations_and_weight_norm() -> None:
    ours, theirs = _conv(4, 6, 3).modules()
    nn.utils.parametrizations.weight_norm(ours)
    input = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(ours(input), theirs(input))


def test_channels_last_model() -> None:
    ours, theirs = _conv(4, 6, 3).modules()
    ours, theirs = ours.to(memory_format=torch.channels_last), theirs.to(memory_format=torch.channels_last)
    input = torch.randn(2, 4, 8, 9).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(input), theirs(input))
    assert ours(input).stride() == theirs(input).stride()


def test_names_at_the_top() -> None:
    for name in cnnfast.nn.__all__:
        assert getattr(cnnfast, name) is getattr(cnnfast.nn, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cnnfast.nothing
