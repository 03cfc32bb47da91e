"""Drop-in modules: torch.nn's constructors, parameters, state_dict and repr; only the computation is cnnfast's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from . import functional
from .arguments import IntOrPair

__all__ = ["Conv2d", "ConvTranspose2d", "ReLU", "MaxPool2d", "AvgPool2d", "ConvReLU2d", "ConvReLUMaxPool2d"]


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` on :func:`cnnfast.functional.conv2d`; arguments, attributes and weights are the same.

    Shape: [N, C, H, W] -> [N, K, P, Q], or without N.

    Example::

        >>> cnnfast.Conv2d(1, 12, kernel_size=3, padding=1)
        Conv2d(1, 12, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    def forward(self, input: Tensor) -> Tensor:
        own: dict[str, Any] = self._parameters
        try:  # Where they are: two times nn.Module.__getattr__ would be a tenth of a small call.
            weight, bias = own["weight"], own["bias"]
        except KeyError:  # A parametrization, or a plain attribute in a parameter's place.
            weight, bias = self.weight, self.bias
        return self._conv_forward(input, weight, bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = _padded(self, input)
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


def _padded(conv: nn.Conv2d, input: Tensor) -> tuple[Tensor, str | tuple[int, ...]]:
    """The input and the zeros still to be padded: other padding modes are torch's own."""
    if conv.padding_mode == "zeros":
        return input, conv.padding
    return F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), (0, 0)


class ConvReLU2d(Conv2d):
    """:class:`Conv2d` followed by ReLU, in one pass: :func:`cnnfast.functional.conv2d_relu`.

    Arguments, attributes and weights are those of :class:`torch.nn.Conv2d`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return functional.conv2d_relu(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class ConvReLUMaxPool2d(Conv2d):
    """:class:`Conv2d`, ReLU and max-pooling in one pass: :func:`cnnfast.functional.conv2d_relu_max_pool2d`.

    Args:
        args, kwargs: as :class:`torch.nn.Conv2d`, whose attributes and weights it has.
        pool_kernel_size: size of the pooling window, int or pair.
        pool_stride: step of the window, int or pair; None for ``pool_kernel_size``.
        pool_padding: rows and columns around the un-pooled map, int or pair; at most half of the window.
        pool_dilation: distance of window elements in pixels, int or pair.
        ceil_mode: round pooled sizes up instead of down.

    Example::

        >>> cnnfast.ConvReLUMaxPool2d(1, 12, 3, padding=1)(torch.randn(8, 1, 28, 28)).shape
        torch.Size([8, 12, 14, 14])
    """

    def __init__(
        self,
        *args: Any,
        pool_kernel_size: IntOrPair = 2,
        pool_stride: IntOrPair | None = None,
        pool_padding: IntOrPair = 0,
        pool_dilation: IntOrPair = 1,
        ceil_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_kernel_size if pool_stride is None else pool_stride
        self.pool_padding = pool_padding
        self.pool_dilation = pool_dilation
        self.ceil_mode = ceil_mode

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return functional.conv2d_relu_max_pool2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            pool_kernel_size=self.pool_kernel_size,
            pool_stride=self.pool_stride,
            pool_padding=self.pool_padding,
            pool_dilation=self.pool_dilation,
            ceil_mode=self.ceil_mode,
        )

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, pool_kernel_size={self.pool_kernel_size}, pool_stride={self.pool_stride}, "
            f"pool_padding={self.pool_padding}, pool_dilation={self.pool_dilation}, ceil_mode={self.ceil_mode}"
        )


class ConvTranspose2d(nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` on :func:`cnnfast.functional.conv_transpose2d`; ``output_size`` included."""

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        assert isinstance(self.padding, tuple)  # torch's constructor takes no padding by name here
        output_padding = self._output_padding(
            input,
            None if output_size is None else list(output_size),
            list(self.stride),
            list(self.padding),
            list(self.kernel_size),
            2,
            list(self.dilation),
        )
        return functional.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


class ReLU(nn.ReLU):
    """:class:`torch.nn.ReLU` on :func:`cnnfast.functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, self.inplace)


class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` on :func:`cnnfast.functional.max_pool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool2d(nn.AvgPool2d):
    """:class:`torch.nn.AvgPool2d` on :func:`cnnfast.functional.avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )
