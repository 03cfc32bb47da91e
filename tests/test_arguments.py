"""How options are read, and that what is remembered of them is what was passed."""

from __future__ import annotations

import enum

import pytest
import torch
import torch.nn.functional as F

import cnnfast.functional as CF
from cnnfast import arguments

INPUT, WEIGHT = torch.ones(1, 1, 9, 9), torch.ones(1, 1, 3, 3)


def test_same_objects_are_read_once() -> None:
    stride, padding = (2, 1), (0, 1)
    first = arguments.conv2d_options(False, "conv2d", 3, 3, stride, padding, 1, 1)
    assert first == (2, 1, 0, 0, 1, 1, 1, 1, 1, False)
    assert arguments.conv2d_options(False, "conv2d", 3, 3, stride, padding, 1, 1) is first


def test_a_list_may_change_between_calls() -> None:
    stride = [1, 1]
    assert CF.conv2d(INPUT, WEIGHT, stride=stride).shape == (1, 1, 7, 7)
    stride[:] = [3, 2]
    assert CF.conv2d(INPUT, WEIGHT, stride=stride).shape == (1, 1, 3, 4)


@pytest.mark.parametrize("wrong", [1.0, True, (1.0, 1.0), (True, True)], ids=repr)
def test_what_equals_a_number_is_none(wrong: object) -> None:
    equal = (1, 1) if isinstance(wrong, tuple) else 1
    assert CF.conv2d(INPUT, WEIGHT, stride=equal).shape == (1, 1, 7, 7)
    with pytest.raises(TypeError, match="stride must be an int or a pair of ints"):
        CF.conv2d(INPUT, WEIGHT, stride=wrong)  # type: ignore[arg-type]


def test_more_objects_than_are_remembered() -> None:
    for size in range(2 * arguments._MOST_REMEMBERED):
        padding = tuple([size % 4, size % 3])  # a new object each time
        options = arguments.conv2d_options(False, "conv2d", 3, 3, 1, padding, 1, 1)
        assert options == (1, 1, size % 4, size % 4, size % 3, size % 3, 1, 1, 1, False)


class Padding(str, enum.Enum):
    SAME = "same"


@pytest.mark.parametrize("kernel", [(3, 3), (2, 5)], ids=str)
def test_padding_by_a_subclass_of_str(kernel: tuple[int, int]) -> None:
    weight = torch.ones(1, 1, *kernel)
    expected = F.conv2d(INPUT, weight, padding="same")
    assert torch.equal(CF.conv2d(INPUT, weight, padding=Padding.SAME), expected)
