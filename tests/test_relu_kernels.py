"""The raw ReLU ops against torch: bit for bit, NaN and -0.0 included, and in torch's strides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cnnfast  # noqa: F401  (registers the ops)
from cnnfast.testing import DTYPES, LAYOUTS

ops = torch.ops.cnnfast
SPECIAL = [0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), 1e-7, -1e-7, 1.0, -1.0]
# Elements per task, and one register's neighbours.
LENGTHS = [0, 1, 7, 8, 9, 31, 33, 2**15 - 1, 2**15 + 1]


@pytest.fixture(params=json.loads(ops.cpu_info())["supported"], autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    before = json.loads(ops.cpu_info())["isa"]
    assert ops.set_cpu_isa(request.param)
    yield
    ops.set_cpu_isa(before)


def bits(tensor: Tensor) -> Tensor:
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return tensor.contiguous().view(integer)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert actual.numel() == 0 or actual.stride() == expected.stride()
    assert torch.equal(bits(actual), bits(expected))


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal values, every special one among them as far as they fit."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)
    tensor.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=torch.float64)[: tensor.numel()]
    return tensor.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(dtype: torch.dtype) -> None:
    for length in LENGTHS:
        input = values((length,), dtype)
        output = F.relu(input)
        assert_same_bits(ops.relu_forward(input), output)
        assert_same_bits(ops.relu(input), output)
        # Every special gradient meets every special output.
        for shift in range(len(SPECIAL)):
            grad_output = values((length,), dtype).roll(shift)
            expected = torch.ops.aten.threshold_backward(grad_output, output, 0)
            assert_same_bits(ops.relu_backward(grad_output, output), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (0, 3, 4, 5)], ids=str)
def test_layouts(shape: tuple[int, ...], layout: str) -> None:
    input = LAYOUTS[layout](values(shape, torch.float32))
    output = F.relu(input)
    assert_same_bits(ops.relu_forward(input), output)
    expected = torch.ops.aten.threshold_backward(output, output, 0)
    for grad_layout in LAYOUTS.keys() - {"expanded"}:
        assert_same_bits(ops.relu_backward(LAYOUTS[grad_layout](output), output), expected)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.permute(3, 1, 0, 2),
        lambda x: x[..., ::2].permute(3, 0, 2, 1),
        lambda x: x.transpose(0, 2)[1:],
        lambda x: x[0, 0, 0, 0],
        lambda x: x[:, :1].expand(-1, 7, -1, -1),
        lambda x: x.flatten()[3:],
    ],
)
def test_any_view(view: Callable[[Tensor], Tensor]) -> None:
    input = view(values((3, 4, 5, 6), torch.float64))
    assert_same_bits(ops.relu_forward(input), F.relu(input))


def test_errors_name_the_rule() -> None:
    with pytest.raises(RuntimeError, match="dtype must be float32, float64, bfloat16 or float16, but got"):
        ops.relu_forward(torch.ones(3, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="grad_output must have the shape of output, but got"):
        ops.relu_backward(torch.ones(3), torch.ones(4))
    with pytest.raises(RuntimeError, match="grad_output must have the dtype of output"):
        ops.relu_backward(torch.ones(3), torch.ones(3, dtype=torch.float64))
