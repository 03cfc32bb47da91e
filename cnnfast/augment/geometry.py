"""Geometric transforms of a whole image: rotation, flips, zoom and shear; crops are in crop.py.

Angles, centres and sizes are torchvision's (transforms.v2): a pixel is a square whose centre is what is sampled,
rotation is counter-clockwise, affine's angle clockwise. Two conventions differ. Interpolation is bilinear by default,
where torchvision's default is the nearest pixel (of two as near, ours is the one to the right or below). And at the
edge a pixel blends with the fill in proportion to what it covers, as torchvision's functional forms do with
``fill=None``; with a fill of numbers they darken that edge twice.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

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
    if not isinstance(value, Sequence):
        check(
            isinstance(value, numbers.Real) and value >= 0,
            owner,
            f"{name} must not be negative, as one number",
            **{name: value},
        )
        return (-float(value), float(value))
    rule = f"{name} must be a number or a pair (low, high)"
    return pair_of(owner, rule, **{name: value})


def pair_of(owner: Any, rule: str, /, **named: Any) -> tuple[float, float]:
    """(low, high), the one value of ``named``; where it is none, the rule is told."""
    (value,) = named.values()
    good = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(number, numbers.Real) for number in value)
    check(good and value[0] <= value[1], owner, rule, **named)
    return (float(value[0]), float(value[1]))


def positive_pair_of(owner: Any, name: str, value: Any) -> tuple[float, float]:
    rule = f"{name} must be a pair (low, high) of positive numbers"
    low, high = pair_of(owner, rule, **{name: value})
    check(low > 0, owner, rule, **{name: value})
    return low, high


def fill_of(owner: Any, fill: Fill) -> Fill:
    """The fill, if it is one: a number, or a tuple of one for each channel."""
    values: Any = (fill,) if isinstance(fill, numbers.Real) else fill
    good = isinstance(values, Sequence) and len(values) > 0 and all(isinstance(x, numbers.Real) for x in values)
    check(good, owner, "fill must be a number, or one for each channel", fill=fill)
    return fill if isinstance(fill, (int, float)) else tuple(float(value) for value in values)


def channels_of(fill: Fill) -> int | None:
    """The channels that it is for; None for any number."""
    return len(fill) if isinstance(fill, Sequence) and len(fill) > 1 else None


def by_channel(owner: Any, fill: Fill, channels: int) -> tuple[float, ...]:
    """A value for each channel."""
    values = tuple(map(float, fill)) if isinstance(fill, Sequence) else (float(fill),)
    rule = f"fill must be a number, or one for each of {channels} channels"
    check(len(values) in (1, channels), owner, rule, fill=fill)
    return values if len(values) == channels else values * channels


class _Affine(Transform):
    """What maps by an affine map about a centre."""

    _columns = ("angle", "translate_x", "translate_y", "scale", "shear_x", "shear_y")
    _sign = 1.0  # of the angle

    def __init__(self, interpolation: Any, fill: Fill, center: Sequence[float] | None) -> None:
        super().__init__()
        good = center is None or (isinstance(center, Sequence) and len(center) == 2)
        check(good, self, "center must be (x, y)", center=center)
        self.interpolation = interpolation_of(self, interpolation)
        self.fill = fill_of(self, fill)
        self.center = None if center is None else tuple(center)

    @property
    def asked_channels(self) -> int | None:
        return channels_of(self.fill)

    def steps(self, image: Image, first: int) -> list[Step]:
        names = [column.name for column in self.columns(image)]
        columns = tuple(first + names.index(name) if name in names else NO_COLUMN for name in self._columns)
        x, y = self.center if self.center is not None else (image.width / 2, image.height / 2)
        fill = by_channel(self, self.fill, image.channels)
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
        self.scale = positive_pair_of(self, "scale", scale)

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
        pair = translate is None or (isinstance(translate, Sequence) and len(translate) == 2)
        good = pair and all(0 <= share <= 1 for share in translate or ())
        check(good, self, "translate must be a pair of shares of 0 to 1", translate=translate)
        self.degrees = range_of(self, "degrees", degrees)
        self.translate = None if translate is None else tuple(translate)
        self.scale = None if scale is None else positive_pair_of(self, "scale", scale)
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
