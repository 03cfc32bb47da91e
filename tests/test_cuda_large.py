"""CUDA kernels on tensors of more than 2^31 elements: of each grid only the first and the last block run, in the
emulation, and most of the memory is never touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from cuda_host.fixture import emulated  # noqa: F401
from torch import Tensor

from cnnfast import functional

DTYPES = {torch.float32: numpy.float32, torch.bfloat16: numpy.uint16}
EDGE = 6  # rows and columns of the corners that are not zero


@pytest.fixture(autouse=True)
def only_ends(emulated: None) -> Iterator[None]:  # noqa: F811
    torch.ops.cnnfast_emulated.set_only_ends(True)
    yield
    torch.ops.cnnfast_emulated.set_only_ends(False)


def large(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Zeros whose memory is given only where it is written, but for the first and the last corner."""
    tensor = torch.from_numpy(numpy.zeros(shape, DTYPES[dtype])).view(dtype)
    assert tensor.numel() > 2**31
    generator = torch.Generator().manual_seed(0)
    for corner in (tensor[0, :, :EDGE, :EDGE], tensor[-1, :, -EDGE:, -EDGE:]):
        corner.copy_(torch.randint(-3, 4, corner.shape, generator=generator))
    return tensor


def check_ends(output: Tensor, first: Tensor, last: Tensor) -> None:
    """Two elements of each end, far from the cuts of the corners that ``first`` and ``last`` were computed from."""
    assert torch.equal(output[0, 0, 0, :2], first[0, 0, 0, :2])
    assert torch.equal(output[-1, -1, -1, -2:], last[-1, -1, -1, -2:])
    assert last[-1, -1, -1, -2:].abs().sum() > 0


def corners(input: Tensor) -> tuple[Tensor, Tensor]:
    return input[:1, :, :EDGE, :EDGE].contiguous(), input[-1:, :, -EDGE:, -EDGE:].contiguous()


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_pooling(op: str) -> None:
    input = large((3, 2, 19000, 19000), torch.float32)
    first, last = (getattr(F, op)(corner, 2) for corner in corners(input))
    check_ends(getattr(functional, op)(input, 2), first, last)


def test_relu() -> None:
    input = large((3, 2, 19000, 19000), torch.float32)
    output = functional.relu(input)
    first, last = (F.relu(corner) for corner in corners(input))
    assert torch.equal(output[0, 0, 0, :EDGE], first[0, 0, 0])
    assert torch.equal(output[-1, -1, -1, -EDGE:], last[-1, -1, -1])


# Weights of at most two blocks, which both run.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int, int], tuple[int, int, int, int], torch.dtype, dict[str, Any]]] = {
    "direct": ((3, 2, 19000, 19000), (2, 2, 3, 3), torch.float32, {"padding": 1}),
    "depthwise": ((3, 2, 19000, 19000), (2, 1, 3, 3), torch.float32, {"padding": 1, "groups": 2}),
    "implicit_gemm": ((4, 32, 4100, 4100), (16, 32, 1, 1), torch.float32, {}),
    "implicit_gemm_mma": ((9, 32, 4100, 4100), (16, 32, 1, 1), torch.bfloat16, {}),
}


@pytest.mark.parametrize("algorithm", CONVOLUTIONS)
def test_convolution(algorithm: str) -> None:
    shape, weight_shape, dtype, arguments = CONVOLUTIONS[algorithm]
    input = large(shape, dtype)
    weight = torch.randint(1, 3, weight_shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    output = functional.conv2d(input, weight, **arguments)
    first, last = (F.conv2d(corner, weight, **arguments) for corner in corners(input))
    check_ends(output, first, last)
