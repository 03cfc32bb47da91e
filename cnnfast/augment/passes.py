"""How steps become passes over the images: what folds with what, and the numbers that the kernel takes.

A pass samples each output pixel once, through the affine maps of all its geometric steps in one, then takes the point
steps while the pixel is at hand. csrc/common/augment.h has the meaning of the numbers.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

import torch
from torch import Tensor

from .. import library
from .image import Image, Parameters

# AugmentPass::kMostGeometry; and kMostPoints, less a rounding of the pass's own and a fill of its last geometric step.
MOST_GEOMETRY, MOST_POINTS = 8, 24 - 2
NO_COLUMN = -1


class GeometryKind(enum.IntEnum):
    AFFINE = 0
    FLIP = 1
    CROP = 2
    RESIZED_CROP = 3


class PointKind(enum.IntEnum):
    LINEAR = 0
    BRIGHTNESS = 1
    CONTRAST = 2
    SATURATION = 3
    GRAY = 4
    NOISE = 5
    ROUND = 6
    TRUNCATE = 7
    FILL = 8


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A geometric step.

    Attributes:
        kind: as the kernel knows it.
        before, after: the images that it takes and gives.
        columns: of its numbers in the parameters, up to six; NO_COLUMN for the neutral one.
        constants: the same for every image.
        mode: "bilinear" or "nearest", or None where pixels fall on pixels, as in flips and crops.
        fill: of each channel, what is seen outside; None where nothing is.
        label: for repr.
    """

    kind: GeometryKind
    before: Image
    after: Image
    columns: tuple[int, ...]
    constants: tuple[float, ...] = ()
    mode: str | None = None
    fill: tuple[float, ...] | None = None
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Point:
    """A point step: each pixel by itself.

    Attributes:
        kind: as the kernel knows it.
        before, after: the images that it takes and gives.
        column: of its factor in the parameters; of noise, the number of its stream.
        constants: the same for every image; of FILL and LINEAR those of each channel, one after the other.
        label: for repr.
    """

    kind: PointKind
    before: Image
    after: Image
    column: int = NO_COLUMN
    constants: tuple[float, ...] = ()
    label: str = ""


Step = Geometry | Point


class Pass:
    """Steps that one call of the kernel takes."""

    def __init__(self, before: Image) -> None:
        self.before = self.after = before
        self.geometry: list[Geometry] = []
        self.points: list[Point] = []
        self.labels: list[str] = []

    @property
    def mode(self) -> str | None:
        return next((step.mode for step in self.geometry if step.mode is not None), None)

    def takes(self, step: Step) -> bool:
        """Whether the step may follow in this pass, with the result that a pass of its own would give."""
        if isinstance(step, Point):
            # The mean is that of what a pass is given.
            first = not self.geometry and not self.points
            return len(self.points) < MOST_POINTS and (first or step.kind != PointKind.CONTRAST)
        if len(self.geometry) == MOST_GEOMETRY or len(self.points) >= MOST_POINTS:
            return False
        if step.kind == GeometryKind.RESIZED_CROP and self.geometry:
            return False  # it sees no further than its edge, which only the source's own coordinates can say
        pixels_changed = {point.kind for point in self.points} - {PointKind.FILL}
        if step.mode is None:
            return PointKind.NOISE not in pixels_changed  # noise belongs to where the pixel was
        return not pixels_changed and self.mode in (None, step.mode)

    def add(self, step: Step) -> None:
        self.after = step.after
        if step.label:
            self.labels.append(step.label)
        if isinstance(step, Point):
            self.points.append(step)
            return
        # Around the source lies the first fill. Where a later step sees outside of what it is given, that is written.
        seen = any(before.fill is not None for before in self.geometry) or bool(self.points)
        self.geometry.append(step)
        if step.fill is not None and seen:
            self.points.append(Point(PointKind.FILL, step.after, step.after, len(self.geometry) - 1, step.fill))

    def build(self, device: torch.device) -> BuiltPass:
        channels = self.before.channels
        constants: list[float] = []

        def keep(values: tuple[float, ...]) -> int:
            constants.extend(values)
            return len(constants) - len(values)

        def keep_by_channel(values: tuple[float, ...], each: int = 1) -> int:
            """A grey image made of three channels still has three in the pass."""
            return keep(values * (channels // (len(values) // each)))

        points = list(self.points)
        if self.before.is_integer and self.mode == "bilinear":
            points.insert(0, Point(PointKind.ROUND, self.before, self.before))
        fill = next((step.fill for step in self.geometry if step.fill is not None), (0.0,))
        options = [
            self.after.height,
            self.after.width,
            self.after.channels,
            # What is copied blends with nothing, not even by a weight of zero: its neighbour may be a NaN.
            self.mode != "bilinear",
            keep_by_channel(fill),
        ]
        geometry: list[int] = []
        for step in self.geometry:
            columns = [*step.columns, *[NO_COLUMN] * (6 - len(step.columns))]
            geometry += [step.kind, step.before.height, step.before.width, *columns, keep(step.constants)]
        flat: list[int] = []
        for point in points:
            if point.kind in (PointKind.FILL, PointKind.LINEAR):
                first = keep_by_channel(point.constants, 2 if point.kind == PointKind.LINEAR else 1)
            else:
                first = keep(point.constants)
            flat += [point.kind, point.column, first, point.before.is_integer]
        return BuiltPass(
            torch.tensor(constants, dtype=torch.float32, device=device),
            list(map(int, options)),
            list(map(int, geometry)),
            list(map(int, flat)),
            self.after.dtype,
        )

    def __repr__(self) -> str:
        folded = len([step for step in self.geometry if step.label])
        how = f" ({self.mode or 'copied'}{', folded' if folded > 1 else ''})" if folded else ""
        mean = "grey's mean, then " if any(point.kind == PointKind.CONTRAST for point in self.points) else ""
        return f"{mean}{' -> '.join(self.labels)}{how}"


@dataclasses.dataclass(frozen=True)
class BuiltPass:
    """A pass as the kernel takes it."""

    constants: Tensor
    options: list[int]
    geometry: list[int]
    points: list[int]
    dtype: torch.dtype

    def run(self, images: Tensor, parameters: Parameters) -> Tensor:
        if library.load_error is not None:
            raise RuntimeError(f"augment: needs cnnfast's compiled kernels, but {library.load_error}")
        means = _GRAY_MEAN(images) if PointKind.CONTRAST in self.points[::4] else None
        return _AUGMENT(
            images,
            parameters.values,
            self.constants,
            means,
            parameters.key,
            self.options,
            self.geometry,
            self.points,
            self.dtype,
        )

    def maps(self, parameters: Parameters) -> Tensor | None:
        """[N, 2, 3] in float64, from pixels of the result to those of the images; None where nothing moves."""
        if not self.geometry:
            return None
        size = [*self.geometry[1:3], *self.options[:2]]
        return _MAPS(parameters.values, self.constants, size, self.geometry).view(-1, 2, 3)


_AUGMENT, _GRAY_MEAN, _MAPS = map(library.op, ("augment", "augment_gray_mean", "augment_maps"))


def passes(before: Image, steps: Iterable[Step]) -> list[Pass]:
    """The steps in as few passes as keep their result."""
    found = [Pass(before)]
    for step in steps:
        if not found[-1].takes(step):
            found.append(Pass(step.before))
        found[-1].add(step)
    return [made for made in found if made.geometry or made.points]
