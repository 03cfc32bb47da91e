"""Windows cut out of images; conventions are those of geometry.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .geometry import Fill, by_channel, channels_of, fill_of, interpolation_of, positive_pair_of
from .image import Column, Image, check
from .passes import Geometry, GeometryKind, Step
from .transform import Transform


def size_of(owner: Any, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width)."""
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    pair = pair * 2 if len(pair) == 1 else pair
    check(
        len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair),
        owner,
        "size must be a positive int or a pair (height, width)",
        size=size,
    )
    return pair  # type: ignore[return-value]


class RandomCrop(Transform):
    """Cuts a window out of each image, at a random place; with ``padding`` out of the padded image.

    Args:
        size: (height, width) of the window, or one int for both.
        padding: pixels around the image: an int, (left and right, top and bottom), or (left, top, right, bottom).
        pad_if_needed: pad on both sides what an image lacks of the size.
        fill: of the padding, a number or one for each channel; default 0.
        padding_mode: must be "constant".

    Shape: [N, C, H, W] -> [N, C, *size]. Parameters: ``top`` and ``left``, of the padded image.

    Raises:
        ValueError: an argument that is not as said above, or a size larger than the padded image.

    Example::

        >>> cnnfast.augment.RandomCrop(28, padding=2)(torch.rand(8, 1, 28, 28)).shape
        torch.Size([8, 1, 28, 28])

    Source: csrc/common/augment.h (the map), csrc/cpu/kernels/sample.h.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int | Sequence[int] | None = None,
        pad_if_needed: bool = False,
        fill: Fill = 0,
        padding_mode: str = "constant",
    ) -> None:
        super().__init__()
        self.size = size_of(self, size)
        sides = (padding or 0,) if padding is None or isinstance(padding, int) else tuple(padding)
        check(
            len(sides) in (1, 2, 4) and all(isinstance(side, int) and side >= 0 for side in sides),
            self,
            "padding must be one, two or four non-negative ints",
            padding=padding,
        )
        check(padding_mode == "constant", self, 'padding_mode must be "constant"', padding_mode=padding_mode)
        self.padding = sides * (4 // len(sides))
        self.pad_if_needed = pad_if_needed
        self.fill = fill_of(self, fill)

    @property
    def asked_channels(self) -> int | None:
        return channels_of(self.fill)

    def _padded(self, image: Image) -> tuple[int, int, int, int]:
        """Padding at the left and at the top, height and width of the padded image."""
        left, top, right, bottom = self.padding
        height, width = image.height + top + bottom, image.width + left + right
        if self.pad_if_needed:
            more_h, more_w = max(0, self.size[0] - height), max(0, self.size[1] - width)
            left, top, height, width = left + more_w, top + more_h, height + 2 * more_h, width + 2 * more_w
        check(
            self.size[0] <= height and self.size[1] <= width,
            self,
            "size must not be larger than the padded image",
            size=self.size,
            padded=(height, width),
        )
        return left, top, height, width

    def columns(self, image: Image) -> tuple[Column, ...]:
        _, _, height, width = self._padded(image)
        return (Column.up_to("top", height - self.size[0]), Column.up_to("left", width - self.size[1]))

    def steps(self, image: Image, first: int) -> list[Step]:
        left, top, _, _ = self._padded(image)
        after, fill = image.resized(*self.size), by_channel(self, self.fill, image.channels)
        columns, label = (first, first + 1), type(self).__name__
        return [Geometry(GeometryKind.CROP, image, after, columns, (float(top), float(left)), None, fill, label)]

    def extra_repr(self) -> str:
        return f"size={self.size}, padding={self.padding}, pad_if_needed={self.pad_if_needed}, fill={self.fill}"


class RandomResizedCrop(Transform):
    """Cuts a window of random area and aspect ratio out of each image, and resizes it.

    A window that does not fit is cut to the image, where torchvision draws again, ten times. Pixels are interpolated
    without antialiasing: torchvision's result with ``antialias=False``, and where the window is not larger than
    ``size`` with its default, too.

    Args:
        size: (height, width) of the result, or one int for both.
        scale: the window's share of the image's area is uniform in (low, high); default (0.08, 1).
        ratio: width / height is log-uniform in (low, high); default (3/4, 4/3).
        interpolation: as in :class:`RandomRotation`; "nearest" is what torch calls "nearest-exact".
        antialias: must be False.

    Shape: [N, C, H, W] -> [N, C, *size]. Parameters: ``top``, ``left``, ``height``, ``width``.

    Raises:
        ValueError: an argument that is not as said above.

    Example::

        >>> cnnfast.augment.RandomResizedCrop(24, scale=(0.5, 1))(torch.rand(8, 3, 32, 40)).shape
        torch.Size([8, 3, 24, 24])

    Source: csrc/common/augment.h (the map), csrc/cpu/kernels/sample.h.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: Any = "bilinear",
        antialias: bool = False,
    ) -> None:
        super().__init__()
        self.size = size_of(self, size)
        self.scale = positive_pair_of(self, "scale", scale)
        check(self.scale[1] <= 1, self, "scale must be shares of at most 1", scale=scale)
        self.ratio = positive_pair_of(self, "ratio", ratio)
        self.interpolation = interpolation_of(self, interpolation)
        check(not antialias, self, "antialias must be False", antialias=antialias)

    def columns(self, image: Image) -> tuple[Column, ...]:
        # As drawn; refine() makes of them what the names say.
        return (
            Column.between("top", 0, 1),
            Column.between("left", 0, 1),
            Column.between("height", *self.scale),
            Column.between("width", math.log(self.ratio[0]), math.log(self.ratio[1])),
        )

    def refine(self, values: Tensor, image: Image) -> Tensor:
        top, left, share, log_ratio = values.unbind(1)
        side, root = (share * (image.height * image.width)).sqrt(), (log_ratio / 2).exp()
        height = (side / root).round().clamp(1, image.height)
        width = (side * root).round().clamp(1, image.width)
        top = (top * (image.height - height + 1)).floor().minimum(image.height - height)
        left = (left * (image.width - width + 1)).floor().minimum(image.width - width)
        return torch.stack((top, left, height, width), 1)

    def steps(self, image: Image, first: int) -> list[Step]:
        after, label = image.resized(*self.size), type(self).__name__
        columns = tuple(range(first, first + 4))
        # It sees nothing outside of its window; what a fold needs to know is that it is no flip.
        fill = (0.0,) * image.channels
        return [Geometry(GeometryKind.RESIZED_CROP, image, after, columns, (), self.interpolation, fill, label)]

    def extra_repr(self) -> str:
        return f"size={self.size}, scale={self.scale}, ratio={self.ratio}, interpolation={self.interpolation!r}"
