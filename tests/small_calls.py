"""Small calls of each op, as the public ops take their arguments, with the same from torch.nn.functional."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import cnnfast.functional as CF
from cnnfast import autograd


class Call(NamedTuple):
    """One call: shapes of its tensors (None for no bias) and keyword arguments of the functional."""

    op: str
    shapes: tuple[tuple[int, ...] | None, ...]
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.op}-{self.shapes[0]}-{self.arguments}".replace(" ", "")

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor | None]:
        """Random leaves that want gradients. All values differ, so that no window has two winners."""
        generator = torch.Generator().manual_seed(seed)
        return [
            None if shape is None else torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
            for shape in self.shapes
        ]

    def ours(self, *tensors: Tensor | None) -> Tensor:
        if self.op == "max_pool2d":
            return CF.max_pool2d(*tensors, **self.arguments, return_indices=True)[0]
        return getattr(CF, self.op.removesuffix("_with_code"))(*tensors, **self.arguments)

    def theirs(self, *tensors: Tensor | None) -> Tensor:
        return _THEIRS[self.op](*tensors, **self.arguments)

    def public(self, *tensors: Tensor | None) -> Any:
        """The public op, with all of its results."""
        return autograd.PUBLIC[self.op](*self.public_arguments(*tensors))

    def public_arguments(self, *tensors: Tensor | None) -> tuple[Any, ...]:
        """What the functional passes to the public op."""
        return public_arguments(self.op, lambda: self.ours(*tensors))


def public_arguments(op: str, call: Callable[[], Any]) -> tuple[Any, ...]:
    """What ``call``, of a functional, passes to the public op under torch.compile."""
    with (
        mock.patch.object(torch.compiler, "is_compiling", lambda: True),
        mock.patch.dict(autograd.PUBLIC, {op: mock.Mock(return_value=(None, None))}),
    ):
        call()
        return autograd.PUBLIC[op].call_args.args


def _fused(input: Tensor, weight: Tensor, bias: Tensor | None = None, **arguments: Any) -> Tensor:
    names = ("pool_kernel_size", "pool_stride", "pool_padding", "pool_dilation", "ceil_mode")
    pool = {name.removeprefix("pool_"): arguments.pop(name) for name in names if name in arguments}
    return F.max_pool2d(F.relu(F.conv2d(input, weight, bias, **arguments)), **{"kernel_size": 2, **pool})


_THEIRS: dict[str, Callable[..., Tensor]] = {
    "conv2d": F.conv2d,
    "conv2d_relu": lambda *tensors, **arguments: F.relu(F.conv2d(*tensors, **arguments)),
    "conv2d_relu_max_pool2d": _fused,
    "conv_transpose2d": F.conv_transpose2d,
    "relu": F.relu,
    "max_pool2d": F.max_pool2d,
    "max_pool2d_with_code": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
}

_CONVOLUTIONS = [
    (((2, 2, 5, 6), (3, 2, 3, 3), (3,)), {"padding": 1}),
    (((2, 4, 6, 5), (4, 2, 3, 2), None), {"stride": (2, 1), "padding": (1, 2), "groups": 2}),
    (((2, 5, 5), (2, 2, 2, 2), (2,)), {"dilation": 2}),
    (((1, 2, 5, 5), (2, 2, 2, 4), (2,)), {"padding": "same"}),
    (((0, 2, 5, 5), (2, 2, 3, 3), (2,)), {}),
]
_POOLS: list[dict[str, Any]] = [{}, {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1, "ceil_mode": True}]

CALLS = [
    *(Call(op, shapes, arguments) for op in ("conv2d", "conv2d_relu") for shapes, arguments in _CONVOLUTIONS),
    *(
        Call("conv2d_relu_max_pool2d", shapes, {**arguments, **pool})
        for shapes, arguments in _CONVOLUTIONS
        for pool in _POOLS
    ),
    Call("conv_transpose2d", ((2, 3, 4, 3), (3, 2, 3, 3), (2,)), {"stride": 2, "padding": 1, "output_padding": 1}),
    Call("conv_transpose2d", ((4, 3, 4), (4, 2, 2, 3), None), {"dilation": (1, 2), "groups": 2}),
    Call("conv_transpose2d", ((0, 3, 4, 3), (3, 2, 3, 3), (2,)), {}),
    Call("relu", ((3, 4, 5),), {}),
    Call("relu", ((0, 3),), {}),
    *(
        Call(op, (shape,), arguments)
        for op in ("max_pool2d", "max_pool2d_with_code")
        for shape, arguments in [
            ((2, 3, 5, 6), {"kernel_size": 2}),
            ((3, 7, 6), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
            ((1, 2, 6, 6), {"kernel_size": 2, "stride": 1, "dilation": 2}),
            ((0, 2, 6, 6), {"kernel_size": 2}),
        ]
    ),
    Call("avg_pool2d", ((2, 3, 5, 6),), {"kernel_size": 2}),
    Call("avg_pool2d", ((3, 7, 6),), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    Call("avg_pool2d", ((1, 2, 6, 6),), {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
    Call("avg_pool2d", ((1, 2, 6, 6),), {"kernel_size": 2, "divisor_override": 3}),
    Call("avg_pool2d", ((0, 2, 6, 6),), {"kernel_size": 2}),
]


def one_of_each() -> list[Call]:
    """The first call of each op."""
    return list({call.op: call for call in reversed(CALLS)}.values())
