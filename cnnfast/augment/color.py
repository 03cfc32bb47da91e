"""Transforms of a pixel by itself: colour, noise, normalisation.

The values of uint8 images are whole numbers after every step, cut off rather than rounded, as torchvision's are.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch

from .geometry import pair_of
from .image import DTYPES, Column, Image, check
from .passes import NO_COLUMN, Point, PointKind, Step
from .transform import Transform


def _whole(step: Point) -> list[Step]:
    """The step, and what makes its result whole numbers in uint8."""
    if not step.before.is_integer:
        return [step]
    return [step, Point(PointKind.TRUNCATE, step.after, step.after)]


class ColorJitter(Transform):
    """Changes brightness, contrast and saturation of each image, in this order.

    torchvision's ColorJitter, but for the order, which it draws for each call, and hue, which is not here.

    Args:
        brightness: the factor is uniform in (max(0, 1 - brightness), 1 + brightness), or in the pair (low, high); 0,
            the default, or None for no change. An image times its factor, clamped.
        contrast: likewise; between the mean of the image's grey (0) and the image (1).
        saturation: likewise; between the image's grey (0) and the image (1). Grey images stay as they are.

    Shape: [N, C, H, W] -> the same; C is 1 or 3 for contrast and saturation. Parameters: ``brightness``, ``contrast``,
    ``saturation``, those that change.

    Raises:
        ValueError: an argument that is not as said above, or images of another number of channels.

    Example::

        >>> cnnfast.augment.ColorJitter(brightness=0.2, contrast=0.2)(torch.rand(8, 3, 32, 40)).shape
        torch.Size([8, 3, 32, 40])

    Source: csrc/cpu/kernels/augment.h.
    """

    _kinds = {
        "brightness": PointKind.BRIGHTNESS,
        "contrast": PointKind.CONTRAST,
        "saturation": PointKind.SATURATION,
    }

    def __init__(
        self,
        brightness: float | Sequence[float] | None = 0,
        contrast: float | Sequence[float] | None = 0,
        saturation: float | Sequence[float] | None = 0,
    ) -> None:
        super().__init__()
        self.brightness = self._factors("brightness", brightness)
        self.contrast = self._factors("contrast", contrast)
        self.saturation = self._factors("saturation", saturation)

    def _factors(self, name: str, value: float | Sequence[float] | None) -> tuple[float, float] | None:
        if value is None:
            return None
        rule = f"{name} must be a non-negative number or a pair (low, high) of such"
        if not isinstance(value, Sequence):
            check(isinstance(value, numbers.Real) and value >= 0, self, rule, **{name: value})
            low, high = max(0.0, 1 - float(value)), 1 + float(value)
        else:
            low, high = pair_of(self, rule, **{name: value})
            check(low >= 0, self, rule, **{name: value})
        return None if low == high == 1 else (low, high)

    def columns(self, image: Image) -> tuple[Column, ...]:
        ranges = ((name, getattr(self, name)) for name in self._kinds)
        return tuple(Column.between(name, *factors) for name, factors in ranges if factors is not None)

    def steps(self, image: Image, first: int) -> list[Step]:
        found: list[Step] = []
        for index, column in enumerate(self.columns(image)):
            kind = self._kinds[column.name]
            if kind != PointKind.BRIGHTNESS:
                rule = f"{column.name} is of images of 1 or 3 channels"
                check(image.channels in (1, 3), self, rule, channels=image.channels)
            if kind == PointKind.SATURATION and image.channels == 1:
                continue
            label = f"ColorJitter.{column.name}"
            found += _whole(Point(kind, image, image, first + index, (image.bound,), label))
        return found

    def extra_repr(self) -> str:
        return f"brightness={self.brightness}, contrast={self.contrast}, saturation={self.saturation}"


class Grayscale(Transform):
    """Colour to grey: 0.2989 red + 0.587 green + 0.114 blue, as torchvision's. Grey images stay as they are.

    Args:
        num_output_channels: 1 (default), or 3 of the same values.

    Shape: [N, C, H, W] -> [N, num_output_channels, H, W]; C is 3, or 1 where num_output_channels is.

    Raises:
        ValueError: an argument that is not as said above, or images of another number of channels.

    Example::

        >>> cnnfast.augment.Grayscale()(torch.ones(1, 3, 2, 2)).shape
        torch.Size([1, 1, 2, 2])

    Source: csrc/cpu/kernels/augment.h.
    """

    def __init__(self, num_output_channels: int = 1) -> None:
        super().__init__()
        rule = "num_output_channels must be 1 or 3"
        check(num_output_channels in (1, 3), self, rule, num_output_channels=num_output_channels)
        self.num_output_channels = num_output_channels

    def steps(self, image: Image, first: int) -> list[Step]:
        if image.channels == self.num_output_channels == 1:
            return []
        check(image.channels == 3, self, "images must have 3 channels", channels=image.channels)
        after = Image(self.num_output_channels, image.height, image.width, image.dtype)
        return _whole(Point(PointKind.GRAY, image, after, label="Grayscale"))

    def extra_repr(self) -> str:
        return f"num_output_channels={self.num_output_channels}"


class GaussianNoise(Transform):
    """Adds normal noise to every element.

    Noise is drawn in the kernel, from a key and the element's place: Philox4x32-10, then Box and Muller's transform of
    24-bit uniform numbers, so that no number is further out than 5.77 sigma.

    Args:
        mean: of the noise; default 0.
        sigma: its standard deviation; default 0.1. Both are shares of white, 255 in uint8.
        clip: keep values in 0 to white (default). uint8 always is kept there, where torchvision's wraps around.

    Shape: [N, C, H, W] -> the same.

    Raises:
        ValueError: sigma is negative.

    Example::

        >>> cnnfast.augment.GaussianNoise(sigma=0.1)(torch.rand(8, 1, 28, 28)).shape
        torch.Size([8, 1, 28, 28])

    Source: csrc/common/philox.h, csrc/cpu/kernels/normal.h.
    """

    def __init__(self, mean: float = 0.0, sigma: float = 0.1, clip: bool = True) -> None:
        super().__init__()
        check(sigma >= 0, self, "sigma must not be negative", sigma=sigma)
        self.mean, self.sigma, self.clip = float(mean), float(sigma), clip

    def steps(self, image: Image, first: int) -> list[Step]:
        low, high = (0.0, image.bound) if self.clip or image.is_integer else (-math.inf, math.inf)
        constants = (self.mean * image.bound, self.sigma * image.bound, low, high)
        return [Point(PointKind.NOISE, image, image, NO_COLUMN, constants, "GaussianNoise")]

    def extra_repr(self) -> str:
        return f"mean={self.mean}, sigma={self.sigma}, clip={self.clip}"


class Normalize(Transform):
    """(x - mean) / std, channel by channel.

    Args:
        mean, std: a number for each channel, or one for all.
        inplace: must be False: the result is a new tensor.

    Shape: [N, C, H, W], floating -> the same.

    Raises:
        ValueError: a std that is zero, or another number of values than images have channels.
        TypeError: images of uint8; put :class:`ToDtype` before.

    Example::

        >>> cnnfast.augment.Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1))
        tensor([[[[2.]]]])

    Source: csrc/cpu/kernels/augment.h.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            good = isinstance(value, Sequence) and all(isinstance(number, numbers.Real) for number in value)
            check(good, self, f"{name} must be a sequence of numbers, one for each channel", **{name: value})
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        check(len(self.mean) == len(self.std) > 0, self, "mean and std must have as many values", mean=mean, std=std)
        check(all(self.std), self, "std must not be zero", std=std)
        check(not inplace, self, "inplace must be False", inplace=inplace)

    @property
    def asked_channels(self) -> int | None:
        return len(self.mean) if len(self.mean) > 1 else None

    def steps(self, image: Image, first: int) -> list[Step]:
        check(not image.is_integer, self, "images must be floating", TypeError, dtype=image.dtype)
        rule = f"mean must have 1 value, or one for each of {image.channels} channels"
        check(len(self.mean) in (1, image.channels), self, rule, mean=self.mean)
        channels = list(zip(self.mean, self.std)) * (image.channels // len(self.mean))
        constants = tuple(number for mean, std in channels for number in (1 / std, -mean / std))
        return [Point(PointKind.LINEAR, image, image, NO_COLUMN, constants, "Normalize")]

    def extra_repr(self) -> str:
        return f"mean={list(self.mean)}, std={list(self.std)}"


class ToDtype(Transform):
    """To a floating dtype, with ``scale`` from 0 to 255 of uint8 to 0 to 1; torchvision's ToDtype.

    Args:
        dtype: a floating dtype.
        scale: divide uint8 by 255; default False.

    Shape: [N, C, H, W] -> the same.

    Raises:
        ValueError: a dtype that is not floating.

    Example::

        >>> cnnfast.augment.ToDtype(torch.float32, scale=True)(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
        tensor([[[[1.]]]])

    Source: csrc/cpu/kernels/augment.h.
    """

    def __init__(self, dtype: torch.dtype, scale: bool = False) -> None:
        super().__init__()
        check(dtype in DTYPES and dtype.is_floating_point, self, "dtype must be floating", dtype=dtype)
        self.dtype, self.scale = dtype, scale

    def steps(self, image: Image, first: int) -> list[Step]:
        after = Image(image.channels, image.height, image.width, self.dtype)
        factor = 1 / 255 if self.scale and image.is_integer else 1.0
        return [Point(PointKind.LINEAR, image, after, NO_COLUMN, (factor, 0.0) * image.channels, "ToDtype")]

    def extra_repr(self) -> str:
        return f"{self.dtype}, scale={self.scale}"
