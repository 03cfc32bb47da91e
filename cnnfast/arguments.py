"""Arguments as torch's Python front end reads them: ints or pairs, padding by name. Values are checked in C++."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

IntOrPair = int | list[int] | tuple[int, ...]
Pair = tuple[int, int]


def pair(op: str, name: str, value: IntOrPair) -> Pair:
    """``value`` as two ints (height, width): an int, or a tuple or list of one or two.

    Raises TypeError for anything else (bools too, as torch does), RuntimeError for another number of ints.
    """
    # Modules pass pairs of plain ints: no work to do for them.
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return value
    if type(value) is int:
        return (value, value)
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, 2):
            raise RuntimeError(f"{op}: {name} must be an int or a pair of ints, but got {name}={list(value)}")
        return (_int(op, name, value[0]), _int(op, name, value[-1]))
    single = _int(op, name, value)
    return (single, single)


def pool_stride_of(op: str, value: IntOrPair | None, kernel_size: Pair, name: str = "stride") -> Pair:
    """The stride of a pooling: its kernel size where none, or an empty one, is given."""
    if value is None or (isinstance(value, (tuple, list)) and len(value) == 0):
        return kernel_size
    return pair(op, name, value)


def conv_padding(op: str, padding: str | IntOrPair, weight: Tensor, stride: Pair, dilation: Pair) -> tuple[int, ...]:
    """Padding of a convolution as (top, bottom, left, right).

    'same' needs dilation * (kernel - 1) in all; where that is odd, the extra row or column is at the bottom or right.
    """
    if not isinstance(padding, str):
        vertical, horizontal = pair(op, "padding", padding)
        return (vertical, vertical, horizontal, horizontal)
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding != "same":
        raise RuntimeError(f"{op}: padding must be an int, a pair, 'same' or 'valid', but got padding={padding!r}")
    if stride != (1, 1):
        raise RuntimeError(
            f"{op}: padding='same' is not supported for strided convolutions, but got stride={list(stride)}"
        )
    if weight.dim() != 4:  # the op itself says what is wrong with it
        return (0, 0, 0, 0)
    height = dilation[0] * (weight.shape[2] - 1)
    width = dilation[1] * (weight.shape[3] - 1)
    return (height // 2, height - height // 2, width // 2, width - width // 2)


def check_int(op: str, name: str, value: Any) -> int:
    """``value`` as an int, else TypeError."""
    return value if type(value) is int else _int(op, name, value)


def check_bool(op: str, name: str, value: Any) -> bool:
    """``value`` if it is True or False, else TypeError: torch takes no 0 and 1 for them."""
    if value is not True and value is not False:
        raise TypeError(f"{op}: {name} must be bool, but got {name}={value!r}")
    return value


def _int(op: str, name: str, value: Any) -> int:
    # numpy's integers and 0-dimensional integer tensors count as ints, as they do for torch; True does not.
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{op}: {name} must be an int or a pair of ints, but got {name}={value!r}")
