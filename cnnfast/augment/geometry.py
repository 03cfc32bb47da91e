"""Geometric transforms: rotation, flips, zoom, shear and crops.

Angles, centres and sizes are torchvision's (transforms.v2): a pixel is a square whose centre is what is sampled,
rotation is counter-clockwise, affine's angle clockwise. Two conventions differ. Interpolation is bilinear by default,
where torchvision's default is the nearest pixel (of two as near, ours is the one to the right or below). And at the
edge a pixel blends with the fill in proportion to what it covers, as torchvision's functional forms do with
``fill=None``; with a fill of numbers they darken that edge twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .image import Column, Image, check
from .passes import NO_COLUMN, Geometry, GeometryKind, Step
from .transform import Transform

Fill = float | Sequence[float]
Range = float | Sequence[float]
_MODES = ("bilinear", "nearest")


def interpolation_of(owner: Any, value: Any) -> str:
    """ "bilinear" or "nearest", of that string or of torchvision's InterpolationMode."""
    name = getattr(value, "value", value)
    check(name in _MODES, owner, f"interpolation must be one of {_MODES}", interpolation=value)
    return name


def range_of(owner: Any, name: str, value: Range) -> tuple[float, float]:
    """(low, high), or (-value, value) of one number."""
    if isinstance(value, (int, float)):
        check(value >= 0, owner, f"{name} must not be negative, as one number", **{name: value})
        return (-float(value), float(value))
    check(
        len(value) == 2 and value[0] <= value[1],
        owner,
        f"{name} must be a number or a pair (low, high)",
        **{name: value},
    )
    return (float(value[0]), float(value[1]))


def scale_of(owner: Any, scale: Sequence[float]) -> tuple[float, float]:
    check(
        len(scale) == 2 and 0 < scale[0] <= scale[1],
        owner,
        "scale must be a pair (low, high) of positive numbers",
        scale=scale,
    )
    return (float(scale[0]), float(scale[1]))


def size_of(owner: Any, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width)."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    pair = pair * 2 if len(pair) == 1 else pair
    check(
        len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair),
        owner,
        "size must be a positive int or a pair (height, width)",
        size=size,
    )
    return pair  # type: ignore[return-value]


def fill_of(owner: Any, fill: Fill, channels: int) -> tuple[float, ...]:
    """A value for each channel."""
    values = (float(fill),) if isinstance(fill, (int, float)) else tuple(map(float, fill))
    check(
        len(values) in (1, channels), owner, f"fill must be a number, or one for each of {channels} channels", fill=fill
    )
    return values if len(values) == channels else values * channels


class _Affine(Transform):
    """What maps by an affine map about a centre."""

    _columns = ("angle", "translate_x", "translate_y", "scale", "shear_x", "shear_y")
    _sign = 1.0  # of the angle

    def __init__(self, interpolation: Any, fill: Fill, center: Sequence[float] | None) -> None:
        super().__init__()
        check(center is None or len(center) == 2, self, "center must be (x, y)", center=center)
        self.interpolation = interpolation_of(self, interpolation)
        self.fill = fill
        self.center = center

    def steps(self, image: Image, first: int) -> list[Step]:
        names = [column.name for column in self.columns(image)]
        columns = tuple(first + names.index(name) if name in names else NO_COLUMN for name in self._columns)
        x, y = self.center if self.center is not None else (image.width / 2, image.height / 2)
        fill = fill_of(self, self.fill, image.channels)
        constants = (self._sign, x - 0.5, y - 0.5)
        label = type(self).__name__
        return [Geometry(GeometryKind.AFFINE, image, image, columns, constants, self.interpolation, fill, label)]


class RandomRotation(_Affine):
    """Rotates each image about a centre, counter-clockwise, by an angle in degrees.

    Args:
        degrees: the angle is uniform in (-degrees, degrees), or in the pair (low, high).
        interpolation: "bilinear" (default), "nearest" or torchvision's InterpolationMode of these.
        expand: must be False: all images of a batch have one size.
        center: (x, y) from the top left corner, in pixels; default the middle.
        fill: what is seen outside of the image, a number or one for each channel; default 0.

    Shape: [N, C, H, W] -> the same. Parameter: ``angle``.

    Raises:
        ValueError: an argument that is not as said above.

    Example::

        >>> cnnfast.augment.RandomRotation(15)(torch.rand(8, 1, 28, 28)).shape
        torch.Size([8, 1, 28, 28])

    Source: csrc/common/augment.h (the map), csrc/cpu/kernels/sample.h.
    """

    _sign = -1.0

    def __init__(
        self,
        degrees: Range,
        interpolation: Any = "bilinear",
        expand: bool = False,
        center: Sequence[float] | None = None,
        fill: Fill = 0,
    ) -> None:
        super().__init__(interpolation, fill, center)
        check(not expand, self, "expand must be False, as images of a batch have one size", expand=expand)
        self.degrees = range_of(self, "degrees", degrees)

    def columns(self, image: Image) -> tuple[Column, ...]:
        return (Column.between("angle", *self.degrees),)

    def extra_repr(self) -> str:
        return f"degrees={self.degrees}, interpolation={self.interpolation!r}, fill={self.fill}"


class RandomZoom(_Affine):
    """Enlarges each image about its centre by a factor, or makes it smaller; torchvision's affine(scale=).

    Args:
        scale: the factor is uniform in (low, high); above 1 enlarges.
        interpolation, fill: as in :class:`RandomRotation`.

    Shape: [N, C, H, W] -> the same. Parameter: ``scale``.

    Raises:
        ValueError: an argument that is not as said above.

    Example::

        >>> cnnfast.augment.RandomZoom((0.9, 1.1))(torch.rand(8, 1, 28, 28)).shape
        torch.Size([8, 1, 28, 28])

    Source: csrc/common/augment.h (the map), csrc/cpu/kernels/sample.h.
    """

    def __init__(self, scale: Sequence[float], interpolation: Any = "bilinear", fill: Fill = 0) -> None:
        super().__init__(interpolation, fill, None)
        self.scale = scale_of(self, scale)

    def columns(self, image: Image) -> tuple[Column, ...]:
        return (Column.between("scale", *self.scale),)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, interpolation={self.interpolation!r}, fill={self.fill}"


class RandomAffine(_Affine):
    """Rotates (clockwise), scales, shears and translates each image about a centre; torchvision's RandomAffine.

    Args:
        degrees: the angle is uniform in (-degrees, degrees), or in the pair (low, high); 0 for none.
        translate: shares (a, b) of width and height: whole pixels, in (-a * W, a * W) and (-b * H, b * H).
        scale: the factor is uniform in (low, high).
        shear: degrees: of x in (-shear, shear) or in a pair (low, high); four numbers for x and y.
        interpolation, fill, center: as in :class:`RandomRotation`.

    Shape: [N, C, H, W] -> the same. Parameters: ``angle``, and where asked for ``translate_x``, ``translate_y``,
    ``scale``, ``shear_x``, ``shear_y``.

    Raises:
        ValueError: an argument that is not as said above.

    Example::

        >>> t = cnnfast.augment.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5)
        >>> t(torch.rand(8, 3, 32, 40)).shape
        torch.Size([8, 3, 32, 40])

    Source: csrc/common/augment.h (the map), csrc/cpu/kernels/sample.h.
    """

    def __init__(
        self,
        degrees: Range,
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: Range | None = None,
        interpolation: Any = "bilinear",
        fill: Fill = 0,
        center: Sequence[float] | None = None,
    ) -> None:
        super().__init__(interpolation, fill, center)
        check(
            translate is None or (len(translate) == 2 and all(0 <= share <= 1 for share in translate)),
            self,
            "translate must be a pair of shares of 0 to 1",
            translate=translate,
        )
        self.degrees = range_of(self, "degrees", degrees)
        self.translate = translate
        self.scale = None if scale is None else scale_of(self, scale)
        self.shear: tuple[tuple[float, float], ...] = ()
        if isinstance(shear, Sequence) and len(shear) == 4:
            self.shear = (range_of(self, "shear", shear[:2]), range_of(self, "shear", shear[2:]))
        elif shear is not None:
            self.shear = (range_of(self, "shear", shear),)

    def columns(self, image: Image) -> tuple[Column, ...]:
        found = [Column.between("angle", *self.degrees)]
        if self.translate is not None:
            for name, share, side in zip(("translate_x", "translate_y"), self.translate, (image.width, image.height)):
                # Rounded to whole pixels, as torchvision does.
                found.append(Column(name, 0.5 - share * side, 2 * share * side, integer=True))
        if self.scale is not None:
            found.append(Column.between("scale", *self.scale))
        for name, shear in zip(("shear_x", "shear_y"), self.shear):
            found.append(Column.between(name, *shear))
        return tuple(found)

    def extra_repr(self) -> str:
        return (
            f"degrees={self.degrees}, translate={self.translate}, scale={self.scale}, shear={self.shear}, "
            f"interpolation={self.interpolation!r}, fill={self.fill}"
        )


class _Flip(Transform):
    _axis = ""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check(0 <= p <= 1, self, "p must be a probability, of 0 to 1", p=p)
        self.p = p

    def columns(self, image: Image) -> tuple[Column, ...]:
        return (Column.chance(self._axis, self.p),)

    def steps(self, image: Image, first: int) -> list[Step]:
        columns = (first, NO_COLUMN) if self._axis == "horizontal" else (NO_COLUMN, first)
        return [Geometry(GeometryKind.FLIP, image, image, columns, label=type(self).__name__)]

    def extra_repr(self) -> str:
        return f"p={self.p}"


class RandomHorizontalFlip(_Flip):
    """Mirrors each image left to right with probability ``p`` (default 0.5). Parameter: ``horizontal``, 0 or 1.

    Shape: [N, C, H, W] -> the same. Raises ValueError where p is no probability.

    Example::

        >>> cnnfast.augment.RandomHorizontalFlip(p=1)(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[[[2., 1.]]]])

    Source: csrc/common/augment.h.
    """

    _axis = "horizontal"


class RandomVerticalFlip(_Flip):
    """Mirrors each image top to bottom with probability ``p`` (default 0.5). Parameter: ``vertical``, 0 or 1.

    Shape: [N, C, H, W] -> the same. Raises ValueError where p is no probability.

    Example::

        >>> cnnfast.augment.RandomVerticalFlip(p=1)(torch.tensor([[[[1.0], [2.0]]]])).flatten()
        tensor([2., 1.])

    Source: csrc/common/augment.h.
    """

    _axis = "vertical"


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
        self.fill = fill

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
        after, fill = image.resized(*self.size), fill_of(self, self.fill, image.channels)
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
        self.scale = scale_of(self, scale)
        check(self.scale[1] <= 1, self, "scale must be shares of at most 1", scale=scale)
        check(
            len(ratio) == 2 and 0 < ratio[0] <= ratio[1],
            self,
            "ratio must be a pair (low, high) of positive numbers",
            ratio=ratio,
        )
        self.ratio = (float(ratio[0]), float(ratio[1]))
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
