"""Arguments as torch's Python front end reads them: ints or pairs, padding by name. Values are checked in C++."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IntOrPair = int | list[int] | tuple[int, ...]
Pair = tuple[int, int]
Options = tuple[int, ...]


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


def conv_padding(op: str, padding: str | IntOrPair, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[int, ...]:
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
    height, width = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
    return (height // 2, height - height // 2, width // 2, width - width // 2)


def kernel_of(weight: Tensor) -> Pair:
    """(R, S), on which padding='same' depends; (1, 1) of a weight of wrong rank, which the op itself refuses."""
    return (weight.shape[2], weight.shape[3]) if weight.dim() == 4 else (1, 1)


def _remembered(parse: Callable[..., Options]) -> Callable[..., Options]:
    """``parse``, whose results are kept for arguments that are the same objects as in an earlier call.

    Its first argument is whether torch.compile is tracing, which follows ``parse`` itself.

    A module passes the same tuples in each call; comparing them by value would cost as much as reading them, and
    would take 1.0 and True for 1. Kept arguments are kept alive, so no id belongs to two of them, and cannot change.
    """
    known: dict[tuple[int, ...], tuple[tuple[Any, ...], Options]] = {}

    @functools.wraps(parse)
    def remembering(compiling: bool, *arguments: Any) -> Options:
        if compiling:
            return parse(*arguments)
        key = tuple(map(id, arguments))
        found = known.get(key)
        if found is not None:
            return found[1]
        options = parse(*arguments)
        if all(map(_is_constant, arguments)):
            if len(known) >= _MOST_REMEMBERED:
                known.clear()
            known[key] = (arguments, options)
        return options

    return remembering


_MOST_REMEMBERED = 1024


def _is_constant(value: Any) -> bool:
    return type(value) in (int, bool, str, type(None)) or (type(value) is tuple and all(map(_is_constant, value)))


def _conv2d_numbers(
    op: str, R: int, S: int, stride: IntOrPair, padding: str | IntOrPair, dilation: IntOrPair, groups: int
) -> Options:
    """(stride, padding, dilation, groups) as the raw ops take them, one number after the other.

    ``R`` and ``S`` count only where padding is a string: see :func:`kernel_of`.
    """
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    groups = check_int(op, "groups", groups)
    return *stride, *conv_padding(op, padding, (R, S), stride, dilation), *dilation, groups


def max_pool2d_options(
    op: str,
    prefix: str,
    kernel_size: IntOrPair,
    stride: IntOrPair | None,
    padding: IntOrPair,
    dilation: IntOrPair,
    ceil_mode: bool,
) -> Options:
    """(kernel_size, stride, padding, dilation, ceil_mode), one number after the other; names begin with ``prefix``."""
    kernel_size = pair(op, f"{prefix}kernel_size", kernel_size)
    return (
        *kernel_size,
        *pool_stride_of(op, stride, kernel_size, f"{prefix}stride"),
        *pair(op, f"{prefix}padding", padding),
        *pair(op, f"{prefix}dilation", dilation),
        check_bool(op, "ceil_mode", ceil_mode),
    )


def _conv2d_options(*arguments: Any) -> Options:
    """Those numbers, and whether float32 may be rounded to tf32: see :mod:`cnnfast.precision`."""
    return *_conv2d_numbers(*arguments), False


def _fused_options(op: str, R: int, S: int, *arguments: Any) -> Options:
    """Those of the convolution, then those of the pooling; ``arguments`` are both functions', without names."""
    return *_conv2d_numbers(op, R, S, *arguments[:4]), *max_pool2d_options(op, "pool_", *arguments[4:]), False


conv2d_options = _remembered(_conv2d_options)
fused_options = _remembered(_fused_options)


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
