"""A convolution of constants with what runs with it: what :func:`cnnfast.freeze` makes programs of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import autograd, blocks, folding, functional
from .arguments import conv2d_options, kernel_of
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
        # Of calls that need nothing but the kernel: see _packed_for.
        R, S = kernel_of(weight)
        arguments = (self.stride, self.padding, self.dilation, self.groups)
        self._options = conv2d_options(False, "conv2d", R, S, *arguments)
        self._activation = None if self._name is None else functional.ACTIVATIONS[self._name]
        self._only_conv = add is None and pool is None and self.padding_mode == "zeros"
        self._packed: dict[Any, Tensor] = {}
        self._packed_of: tuple[int, int] | None = None
        self.training = False

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        own = self.__dict__
        weight: Any = self._buffers["weight"]
        bias = self._buffers["bias"]
        if residual is None and (packed := self._packed_for(input, weight)) is not None:
            return autograd.conv2d_packed(input, weight, bias, packed, own["_options"], own["_activation"])
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

    def _packed_for(self, input: Tensor, weight: Tensor) -> Tensor | None:
        """What an earlier call on an input of this layout has packed, if this one needs not be looked at any closer.

        A network on one image calls each convolution for some ten microseconds: what is asked here is less than half
        of what is asked below.
        """
        own = self.__dict__
        if own["_packed_of"] is None or not own["_only_conv"] or not folding.is_plain_inference(input):
            return None
        packed = own["_packed"].get((input.shape, input.stride(), own["_options"]))
        if packed is None or own["_packed_of"] != (weight.data_ptr(), weight._version):
            return None
        return packed

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
