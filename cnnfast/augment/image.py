"""What a transform is told of the images and says of itself: plain data, no tensors of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class Image:
    """What images are at one place of a pipeline: their channels, height, width and dtype."""

    channels: int
    height: int
    width: int
    dtype: torch.dtype

    @classmethod
    def of(cls, shape: Sequence[int], dtype: torch.dtype) -> Image:
        """Those of a batch [N, C, H, W]."""
        _, channels, height, width = shape
        return cls(channels, height, width, dtype)

    @property
    def is_integer(self) -> bool:
        return self.dtype == torch.uint8

    @property
    def bound(self) -> float:
        """White: 255 of uint8, else 1."""
        return 255.0 if self.is_integer else 1.0

    def resized(self, height: int, width: int) -> Image:
        return dataclasses.replace(self, height=height, width=width)


@dataclasses.dataclass(frozen=True)
class Column:
    """A number drawn for each image: uniform in [low, low + span), then rounded down where it is an integer."""

    name: str
    low: float
    span: float
    integer: bool = False

    @classmethod
    def between(cls, name: str, low: float, high: float) -> Column:
        return cls(name, low, high - low)

    @classmethod
    def chance(cls, name: str, p: float) -> Column:
        """1 with probability ``p``, else 0. The span keeps p + span * u, rounded to float32, below 2 for p=1."""
        return cls(name, p, 1 - 2.0**-22, integer=True)

    @classmethod
    def up_to(cls, name: str, most: int) -> Column:
        """0, 1, ..., most, each as likely."""
        return cls(name, 0.0, most + 1, integer=True)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What was drawn for a batch: a row for each image, a column for each number, and the key of its noise.

    Attributes:
        values: float32 [N, D], on the images' device.
        names: the D columns' names: "angle", "brightness", ...; in a Compose "0.angle", with the transform's index.
        key: int64 [1], the key of the noise, or None where there is none.

    Example::

        >>> parameters = cnnfast.augment.RandomRotation(10).sample((4, 1, 28, 28))
        >>> parameters["angle"].shape
        torch.Size([4])
    """

    values: Tensor
    names: tuple[str, ...]
    key: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        """The column of that name, [N]: a view, so that writing to it changes what is replayed."""
        if name not in self.names:
            raise KeyError(f"parameters must have the column, but got {name!r}; there are {list(self.names)}")
        return self.values[:, self.names.index(name)]

    def to_dict(self) -> dict[str, Tensor]:
        """Every column by its name."""
        return dict(zip(self.names, self.values.unbind(1)))


def check(condition: bool, owner: Any, rule: str, error: type[Exception] = ValueError, /, **values: Any) -> None:
    """Raises ``error`` as "Owner: rule, but got name=value" unless the condition holds."""
    if not condition:
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        name = owner if isinstance(owner, str) else type(owner).__name__
        raise error(f"{name}: {rule}, but got {given}")
