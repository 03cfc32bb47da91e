"""A convolution of constants with what runs with it: what :func:`cnnfast.freeze` makes programs of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import blocks, folding, functional
from .nn import Conv2d, _padded

__all__ = ["FrozenConv2d"]


class FrozenConv2d(nn.Module):
    """``pool(activation(conv(input) + residual))``, of a convolution in which a BatchNorm is folded.

    Shape: [N, C, H, W] -> [N, K, P, Q]
    """

    weight: Tensor
    bias: Tensor | None
    add: blocks.Sum | None
    activation: nn.Module | None
    pool: nn.MaxPool2d | None

    def __init__(
        self,
        conv: Conv2d,
        bn: nn.BatchNorm2d | None = None,
        add: blocks.Sum | None = None,
        activation: nn.Module | None = None,
        pool: nn.MaxPool2d | None = None,
    ) -> None:
        super().__init__()
        weight, bias = (conv.weight, conv.bias) if bn is None else folding.fold(conv, bn)
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.padding_mode = conv.padding_mode
        self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        for name, module in (("add", add), ("activation", activation), ("pool", pool)):
            self.register_module(name, module)
        self._name = blocks.name_of(activation)
        self._packed: dict[Any, Tensor] = {}
        self._packed_of: tuple[int, int] | None = None
        self.training = False

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        weight: Any = self._buffers["weight"]
        bias = self._buffers["bias"]
        own = self.__dict__
        padding = own["padding"]
        if own["padding_mode"] != "zeros":
            input, padding = _padded(self, input)  # type: ignore[arg-type]
        arguments = (input, weight, bias, own["stride"], padding, own["dilation"], own["groups"])
        add: Any = self._modules["add"]
        if (
            isinstance(input, Tensor)
            and self._modules["pool"] is None
            and folding.are_constants(input, weight, bias)
            and not folding.is_transformed()
            and (add is None or blocks.may_fuse(add, residual, input, weight))
        ):
            output = functional.conv2d_constant(*arguments, own["_name"], self._kept(weight), residual)
            if output is not None:
                return output
        return self._one_by_one(arguments, residual)

    def _kept(self, weight: Tensor) -> dict[Any, Tensor] | None:
        """What the weight was packed to: emptied where it is another one since, by ``to`` or ``load_state_dict``."""
        if type(weight) is not Tensor or not weight.is_cpu or weight.is_inference():
            return None
        now = (weight.data_ptr(), weight._version)
        if now != self._packed_of:
            if weight.is_shared():  # another process may write
                return None
            self._packed, self._packed_of = {}, now
        return self._packed

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._packed, self._packed_of = {}, None
        return super()._apply(*args, **kwargs)

    def _one_by_one(self, arguments: tuple[Any, ...], residual: Tensor | None) -> Tensor:
        if self.add is None and isinstance(self.activation, blocks.RELUS):
            if self.pool is None:
                return functional.conv2d_relu(*arguments)
            return functional.conv2d_relu_max_pool2d(*arguments, **blocks.pool_arguments(self.pool))
        output = functional.conv2d(*arguments)
        if self.add is not None:
            output = self.add(output, residual)
        return output if self.activation is None else self.activation(output)

    # What is packed is made anew, and is no part of a copy.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}, "_packed_of": None}

    @property
    def stages(self) -> str:
        """What runs as one."""
        modules = (self.add, self.activation, self.pool)
        names = [type(module).__name__.lower() for module in modules if module is not None]
        return " + ".join(["conv", *names]).replace("sum", "add").replace("maxpool2d", "pool")

    def extra_repr(self) -> str:
        K, C, R, S = self.weight.shape
        return f"{C * self.groups}, {K}, kernel_size={(R, S)}, stride={self.stride}, {self.stages}"
