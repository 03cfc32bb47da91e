"""BatchNorm folded into a convolution and kept so: every way of changing a parameter is noticed."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import cnnfast
from cnnfast import folding


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(96, 130, 3, padding=1, bias=False), nn.BatchNorm2d(130), nn.ReLU())
    _shuffle(model)
    return cnnfast.convert(model).eval()


def _shuffle(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)


X = torch.randn(2, 96, 7, 6, generator=torch.Generator().manual_seed(1))


def _plain(model: nn.Sequential, x: Tensor) -> Tensor:
    conv, bn, _ = model
    y = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    return nn.functional.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps).relu()


def _check(model: nn.Sequential, x: Tensor = X) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), _plain(model, x), rtol=1e-4, atol=1e-3)


def _step(model: nn.Sequential) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    model.eval()


def _load(model: nn.Sequential) -> None:
    other = copy.deepcopy(model)
    _shuffle(other)
    model.load_state_dict(other.state_dict())


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "weight in place": lambda m: m[0].weight.requires_grad_(False).mul_(2),
    "running_var in place": lambda m: m[1].running_var.add_(1),
    "weight's data in place": lambda m: m[0].weight.data.mul_(2),
    "weight's data copied": lambda m: m[0].weight.data.copy_(torch.randn_like(m[0].weight)),
    "bias's data filled": lambda m: m[1].bias.data.fill_(3.0),
    "running_mean's data, one element": lambda m: m[1].running_mean.data.__setitem__(3, 7.0),
    "weight's data replaced": lambda m: setattr(m[0].weight, "data", torch.randn_like(m[0].weight)),
    "a new parameter": lambda m: setattr(m[1], "weight", nn.Parameter(torch.rand(130))),
    "load_state_dict": _load,
    "optimizer.step": _step,
    "eps": lambda m: setattr(m[1], "eps", 0.5),
    "data in channels_last": lambda m: m.to(memory_format=torch.channels_last)[0].weight.data.mul_(2),
    "a slice of input channels": lambda m: m[0].weight.data[:, 1:].mul_(2),
    "every kernel's middle": lambda m: m[0].weight.data[:, :, 1, 1].add_(1),
    "every kernel's first": lambda m: m[0].weight.data[:, :, 0, 0].add_(1),
    "an eighth of the output channels": lambda m: m[0].weight.data[5::8].zero_(),
    "every second mean": lambda m: m[1].running_mean.data[1::2].fill_(7),
    "a NumPy view": lambda m: m[1].running_var.numpy().__setitem__(5, 9.0),
    "reset_parameters": lambda m: m[0].reset_parameters(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed(model: nn.Sequential, change: Callable[[nn.Sequential], object]) -> None:
    _check(model)
    _check(model)
    change(model)
    _check(model)


def test_is_made_once(model: nn.Sequential) -> None:
    with mock.patch.object(folding, "_fold", wraps=folding._fold) as fold:
        for _ in range(3):
            _check(model)
        with torch.inference_mode():
            model(X)
        assert fold.call_count == 1
        cnnfast.repack(model)
        _check(model)
        assert fold.call_count == 2


def test_single_elements_through_data_want_a_repack(model: nn.Sequential) -> None:
    """The documented limit: some 500 of a large weight's elements are looked at."""
    _check(model)
    model[0].weight.data[0, 0, 0, 1] = 100.0
    cnnfast.repack(model)
    _check(model)


def test_repack_wants_a_module() -> None:
    with pytest.raises(TypeError, match="repack: module must be an nn.Module, but got NoneType"):
        cnnfast.repack(None)  # type: ignore[arg-type]


def test_copies_and_pickles_know_nothing_of_it(model: nn.Sequential) -> None:
    _check(model)
    twin = copy.deepcopy(model)
    assert twin[0] not in folding._kept
    _shuffle(twin)
    _check(twin)
    _check(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    _check(torch.load(buffer, weights_only=False))


def test_vanishes_with_its_module(model: nn.Sequential) -> None:
    _check(model)
    conv = weakref.ref(model[0])
    assert conv() in folding._kept
    del model[0]
    gc.collect()
    assert conv() is None


def test_training_gives_the_memory_back(model: nn.Sequential) -> None:
    _check(model)
    assert model[0] in folding._kept
    model.train()(X)
    assert model[0] not in folding._kept


# Folded at each call, which pays where there are many pixels.
LARGE = torch.randn(2, 96, 40, 40, generator=torch.Generator().manual_seed(2))


def test_parameters_made_for_inference_are_not_kept(model: nn.Sequential) -> None:
    _check(model)
    with torch.inference_mode():
        twin = copy.deepcopy(model)
        for x in (LARGE, X):
            _check(twin, x)
            twin[0].weight.mul_(2)
            _check(twin, x)
    assert twin[0] not in folding._kept


def test_shared_memory_is_not_kept(model: nn.Sequential) -> None:
    _check(model)
    model.share_memory()
    with mock.patch.object(folding, "_fold", wraps=folding._fold) as fold:
        _check(model, LARGE)
        model[0].weight.data[0, 0, 0, 0] = 50.0  # as another process may
        _check(model, LARGE)
        assert fold.call_count == 2
        _check(model)  # few pixels: the BatchNorm runs
        assert fold.call_count == 2


def test_float64_is_looked_at_whole(model: nn.Sequential) -> None:
    model.double()
    with torch.no_grad():
        before = model(X.double())
        model[0].weight.data.mul_(1 + 1e-8)
        assert not torch.equal(model(X.double()), before)


def test_converting_the_model_forgets_it(model: nn.Sequential) -> None:
    _check(model)
    with mock.patch.object(folding, "_fold", wraps=folding._fold) as fold:
        model.double().float()
        _check(model)
    assert fold.call_count == 1


def test_fingerprint_wants_whole_words() -> None:
    with pytest.raises(RuntimeError, match="fingerprint: elements must be of 4 or 8 bytes, but got dtype=Half"):
        torch.ops.cnnfast.fingerprint(torch.ones(3, dtype=torch.float16), *[None] * 5)


def test_tangents_pass(model: nn.Sequential) -> None:
    _check(model)
    tangent = torch.randn_like(model[1].bias)

    def function(bias: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"1.bias": bias}, (X,))

    with torch.no_grad():
        _, derivative = torch.func.jvp(function, (model[1].bias.detach(),), (tangent,))
    torch.testing.assert_close(derivative, tangent[:, None, None].expand_as(derivative) * (model(X) > 0))
