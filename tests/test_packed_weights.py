"""Weights that are packed once for many calls: the same bits, and what does not fit is not used."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import cnnfast
from cnnfast import autograd, folding

ops = torch.ops.cnnfast

# C, K, kernel, stride, padding, H, W
LAYERS = {
    "1x1": (40, 72, 1, 1, 0, 7, 7),
    "odd": (37, 67, 1, 1, 0, 5, 9),
    "strided": (48, 80, 3, 2, 1, 14, 13),
    "5x5": (33, 50, 5, 1, 2, 6, 6),
    "deep": (600, 35, 1, 1, 0, 3, 3),
    "copied in channels_last": (256, 300, 3, 2, 1, 8, 8),
}
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def _layer(
    name: str, memory_format: torch.memory_format, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    C, K, size, stride, padding, H, W = LAYERS[name]
    torch.manual_seed(0)
    x = torch.randn(batch, C, H, W).to(memory_format=memory_format)
    weight = torch.randn(K, C, size, size).to(memory_format=memory_format)
    return x, weight, torch.randn(K), (stride, stride, *[padding] * 4, 1, 1, 1, 0)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_gives_the_same_bits(name: str, memory_format: torch.memory_format, isa: str) -> None:
    x, weight, bias, options = _layer(name, memory_format)
    packed = ops.conv2d_pack_weight(x, weight, options)
    assert packed.numel() > weight.numel()
    for activation in range(5):
        expected = ops.conv2d_forward(x, weight, bias, options, activation)
        # What the weight says by now is of no interest.
        actual = ops.conv2d_packed_forward(x, torch.full_like(weight, torch.nan), bias, packed, options, activation)
        assert torch.equal(actual, expected)
        assert actual.stride() == expected.stride()


def test_serves_other_sizes() -> None:
    x, weight, bias, options = _layer("strided", torch.channels_last)
    packed = ops.conv2d_pack_weight(x, weight, options)
    for shape in ((1, 48, 9, 9), (5, 48, 31, 4), (0, 48, 9, 9)):
        other = torch.randn(shape).to(memory_format=torch.channels_last)
        actual = ops.conv2d_packed_forward(other, torch.full_like(weight, torch.nan), bias, packed, options, 0)
        assert torch.equal(actual, ops.conv2d_forward(other, weight, bias, options, 0))


def test_what_does_not_fit_is_not_used() -> None:
    x, weight, bias, options = _layer("1x1", torch.channels_last)
    expected = ops.conv2d_forward(x, weight, bias, options, 0)
    turned = ops.conv2d_pack_weight(torch.randn(2, 72, 7, 7), torch.randn(40, 72, 1, 1), options)
    planes = ops.conv2d_pack_weight(x.contiguous(), weight.contiguous(), options)
    for packed in (turned, planes, torch.empty(0), torch.randn(100_000)):
        assert torch.equal(ops.conv2d_packed_forward(x, weight, bias, packed, options, 0), expected)


def test_other_instruction_sets_are_not_used(isa: str) -> None:
    x, weight, bias, options = _layer("odd", torch.channels_last)
    assert ops.set_cpu_isa("scalar")
    packed = ops.conv2d_pack_weight(x, weight, options)
    assert ops.set_cpu_isa(isa)
    expected = ops.conv2d_forward(x, weight, bias, options, 0)
    assert torch.equal(ops.conv2d_packed_forward(x, weight, bias, packed, options, 0), expected)


def test_is_empty_where_nothing_is_gained() -> None:
    x, weight, _, options = _layer("1x1", torch.channels_last)
    many = torch.randn(64, 40, 9, 9).to(memory_format=torch.channels_last)
    assert ops.conv2d_pack_weight(many, weight, options).numel() == 0
    assert ops.conv2d_pack_weight(x.double(), weight.double(), options).numel() == 0
    grouped = (*options[:8], 40, 0)
    assert ops.conv2d_pack_weight(x, torch.randn(40, 1, 1, 1), grouped).numel() == 0


def test_errors() -> None:
    x, weight, bias, options = _layer("1x1", torch.channels_last)
    packed = ops.conv2d_pack_weight(x, weight, options)
    with pytest.raises(RuntimeError, match=r"input and packed must be float32, but got input.dtype=.*packed.dtype="):
        ops.conv2d_packed_forward(x, weight, bias, packed.double(), options, 0)
    with pytest.raises(RuntimeError, match=r"activation must be 0 .* but got activation=5"):
        ops.conv2d_packed_forward(x, weight, bias, packed, options, 5)


def test_one_packing_is_kept_for_all_sizes() -> None:
    model = cnnfast.convert(nn.Sequential(nn.Conv2d(48, 64, 1), nn.BatchNorm2d(64), nn.ReLU())).eval()
    with torch.no_grad():
        for size in range(1, autograd._KEPT_LAYOUTS + 4):
            x = torch.randn(1, 48, size, size).to(memory_format=torch.channels_last)
            torch.testing.assert_close(model(x), model[2](model[1](model[0](x))), rtol=1e-5, atol=1e-5)
            packed = folding._kept[model[0]].folded.packed
            assert packed is not None
            assert 1 <= len(packed) <= autograd._KEPT_LAYOUTS
            assert len({kept.data_ptr() for kept in packed.values() if kept.numel() > 0}) <= 1
        with mock.patch.object(autograd, "_conv2d_pack_weight", wraps=autograd._conv2d_pack_weight) as pack:
            model(x)
    pack.assert_not_called()
