"""Several transforms as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .image import Image
from .passes import Step
from .transform import Transform, describe

# What passes there are hardly depends on the images; these are large enough for every crop.
_LARGE = Image(3, 1 << 20, 1 << 20, torch.float32)


class Compose(Transform):
    """Transforms one after the other, in as few passes over the images as give the same result.

    Within a pass the maps of geometric transforms are folded into one, and sampled once: the result of the transforms
    one by one, up to interpolation (sampled once, it is sharper). A point transform rides in the pass, in its order. A
    new pass begins with

    - a geometric transform that interpolates, after a point transform;
    - a flip or crop, after noise;
    - another interpolation than the pass has;
    - RandomResizedCrop, after another geometric transform;
    - contrast, which needs the mean of the whole image first.

    Within a pass values are float32; between passes they are stored in the images' dtype.

    Args:
        transforms: of this module; a Compose may be one of them.

    Shape: [N, C, H, W] -> what the transforms make of it. Parameters: those of the transforms, each with its index
    before: "0.angle".

    Raises:
        TypeError: something that is none of this module's transforms.

    Example::

        >>> from cnnfast import augment
        >>> steps = [augment.RandomRotation(10), augment.RandomCrop(28, padding=2), augment.GaussianNoise()]
        >>> augment.Compose(steps)
        Compose(
          (0): RandomRotation(degrees=(-10.0, 10.0), interpolation='bilinear', fill=0)
          (1): RandomCrop(size=(28, 28), padding=(2, 2, 2, 2), pad_if_needed=False, fill=0)
          (2): GaussianNoise(mean=0.0, sigma=0.1, clip=True)
          pass 1: RandomRotation -> RandomCrop -> GaussianNoise (bilinear, folded)
        )

    Source: cnnfast/augment/passes.py.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)
        self.transforms_in_order()

    def transforms_in_order(self) -> list[Transform]:
        found: list[Transform] = []
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                raise TypeError(f"Compose: transforms must be of cnnfast.augment, but got transform={transform!r}")
            found += transform.transforms_in_order()
        return found

    def steps(self, image: Image, first: int) -> list[Step]:
        raise TypeError("Compose: a Compose has no steps of its own; its transforms have")

    def extra_repr(self) -> str:
        return ""

    def __repr__(self) -> str:
        lines = [f"({index}): {transform!r}" for index, transform in enumerate(self.transforms_in_order())]
        lines += [f"pass {index}: {made!r}" for index, made in enumerate(describe(self, self.typical_image(_LARGE)), 1)]
        return "\n  ".join(["Compose(", *lines]) + "\n)" if lines else "Compose()"
