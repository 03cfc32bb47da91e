"""What every transform is: draws for a batch, then passes over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import passes
from .image import DTYPES, Column, Image, Parameters, check
from .passes import BuiltPass, Geometry, GeometryKind, Pass, Step


@dataclasses.dataclass(frozen=True)
class Plan:
    """A pipeline for images of one kind on one device: what is drawn, and the passes."""

    names: tuple[str, ...]
    low: Tensor
    span: Tensor
    integer: Tensor | None
    draws_key: bool
    refined: tuple[tuple[Transform, Image, int, int], ...]  # of columns [begin, end), for images of that kind
    passes: tuple[BuiltPass, ...]


class Transform(nn.Module):
    """A random change of a batch of images, with a draw for each image.

    ``t(images, generator=None)`` draws and applies. ``t.sample(images.shape)`` draws alone, ``t.apply(images,
    parameters)`` applies what was drawn, again if you like, and ``t.apply_mask(masks, parameters)`` moves masks as the
    images were moved.

    Shape: images [N, C, H, W], uint8 (0 to 255) or floating (0 to 1), on the CPU or a GPU. The result has their dtype,
    device and memory format. float64 is computed in float32.

    A seed gives the same images on any number of threads. Draws are one :func:`torch.rand` of [N, D] and, where there
    is noise, one :func:`torch.randint` of its key.
    """

    _MOST_PLANS = 64

    def __init__(self) -> None:
        super().__init__()
        self._plans: dict[tuple[object, ...], Plan] = {}

    # A plan is of what the attributes were.
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name != "training":
            self.__dict__["_changes"] = self.__dict__.get("_changes", 0) + 1

    # What a transform says of itself.

    def columns(self, image: Image) -> tuple[Column, ...]:
        """What is drawn for an image."""
        return ()

    def refine(self, values: Tensor, image: Image) -> Tensor:
        """The parameters [N, D] that the drawn columns stand for, where they are not the parameters themselves."""
        return values

    def steps(self, image: Image, first: int) -> list[Step]:
        """The steps for such images, whose parameters begin at column ``first``."""
        raise NotImplementedError(f"{type(self).__name__}: a transform must say its steps")

    def transforms_in_order(self) -> list[Transform]:
        return [self]

    @property
    def asked_channels(self) -> int | None:
        """Channels of the images, if no other number will do."""
        return None

    def typical_image(self, like: Image) -> Image:
        """Images of that size which every transform takes: in colour, unless they ask for something else."""
        asked = (t.asked_channels for t in self.transforms_in_order() if t.asked_channels is not None)
        return Image(next(asked, 3), like.height, like.width, torch.float32)

    # What callers use.

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images, transformed: a draw for each.

        Args:
            images: [N, C, H, W], uint8 or floating.
            generator: where the draws come from; default torch's own of the images' device. One of another device
                draws there, and the draws are copied.

        Returns:
            a new tensor.

        Raises:
            RuntimeError: images of another shape or dtype, or that require a gradient.
            ValueError: what a transform asks of images, such as a crop's size, does not hold.
        """
        plan = self._plan_of(images)
        return self._run(plan, images, self._draw(plan, len(images), images.device, generator))

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Parameters:
        """Draws parameters for images of that shape [N, C, H, W]: the numbers that a call with ``generator`` draws."""
        plan = self._plan(shape, dtype, torch.device(device), masks=False)
        return self._draw(plan, shape[0], torch.device(device), generator)

    def apply(self, images: Any, parameters: Parameters | None = None) -> Any:
        """The images, transformed as the parameters say; arguments and errors as in a call.

        With a function alone it is :meth:`torch.nn.Module.apply`, as a model calls it that has transforms for layers.
        """
        if parameters is None:
            return super().apply(images)
        return self._run(self._plan_of(images), images, parameters)

    def apply_mask(self, masks: Tensor, parameters: Parameters) -> Tensor:
        """Masks [N, C, H, W] moved as images of their height and width are: geometric steps alone, the nearest pixel, 0
        outside; uint8 or floating."""
        return self._run(self._plan_of(masks, masks=True), masks, parameters)

    def apply_boxes(self, boxes: Tensor, parameters: Parameters, size: tuple[int, int]) -> Tensor:
        """Boxes moved as the images were.

        Args:
            boxes: [N, M, 4], M of each image: (left, top, right, bottom) in pixels, torchvision's XYXY.
            parameters: what was drawn for the images.
            size: (height, width) of the images.

        Returns:
            [N, M, 4] of the boxes' dtype: the least box around each one's moved corners, cut to the new image. One that
            has left it has no area.

        Raises:
            RuntimeError: boxes of another shape.
        """
        values = parameters.values
        rule = f"boxes must be [N, M, 4], of {len(values)} images"
        good = boxes.dim() == 3 and boxes.shape[0] == len(values) and boxes.shape[2] == 4
        check(good, self, rule, RuntimeError, shape=list(boxes.shape))
        plan = self._plan((len(values), 1, *size), torch.uint8, values.device, masks=True)
        corners = boxes.double()[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2)) - 0.5
        height, width = size
        for step in plan.passes:
            maps = step.maps(parameters)
            if maps is not None:
                inverse = torch.linalg.inv(maps[:, None, :, :2])
                corners = (corners - maps[:, None, None, :, 2]) @ inverse.mT
                height, width = step.options[:2]
        corners = (corners + 0.5).clamp_min(0).minimum(corners.new_tensor([width, height]))
        return torch.cat((corners.amin(2), corners.amax(2)), -1).to(boxes.dtype)

    # How.

    def _plan_of(self, images: Tensor, masks: bool = False) -> Plan:
        check(isinstance(images, Tensor), self, "images must be a tensor", TypeError, images=type(images).__name__)
        check(
            not (images.requires_grad and torch.is_grad_enabled()),
            self,
            "images must not require a gradient, as augmentation has none",
            RuntimeError,
            requires_grad=images.requires_grad,
        )
        return self._plan(images.shape, images.dtype, images.device, masks)

    def _plan(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, masks: bool) -> Plan:
        parts = tuple((transform, transform._changes) for transform in self.transforms_in_order())
        key = (tuple(shape[1:]), dtype, device, masks, parts)
        plan = self._plans.get(key)
        if plan is None:
            check(len(shape) == 4, self, "images must be [N, C, H, W]", RuntimeError, shape=list(shape))
            whole = min(shape[1:]) > 0
            check(whole, self, "images must not be empty but for their number", RuntimeError, shape=list(shape))
            check(dtype in DTYPES, self, f"images must be one of {DTYPES}", RuntimeError, dtype=dtype)
            plan = self._make_plan(Image.of(shape, dtype), device, masks)
            if torch._C._len_torch_dispatch_stack() > 0:
                return plan  # whose tensors may be fake
            if len(self._plans) >= self._MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _make_plan(self, image: Image, device: torch.device, masks: bool) -> Plan:
        columns, refined, steps = self._walk(self.typical_image(image) if masks else image)
        if masks:
            steps = [_of_masks(step, image) for step in steps if isinstance(step, Geometry)]
        integer = torch.tensor([column.integer for column in columns], device=device)
        return Plan(
            tuple(column.name for column in columns),
            torch.tensor([column.low for column in columns], dtype=torch.float32, device=device),
            torch.tensor([column.span for column in columns], dtype=torch.float32, device=device),
            integer if any(column.integer for column in columns) else None,
            any(isinstance(step, passes.Point) and step.kind == passes.PointKind.NOISE for step in steps),
            tuple(refined),
            tuple(made.build(device) for made in passes.passes(image, steps)),
        )

    def _walk(self, image: Image) -> tuple[list[Column], list[tuple[Transform, Image, int, int]], list[Step]]:
        """Columns, who refines which, and steps, of all transforms in their order."""
        columns: list[Column] = []
        refined: list[tuple[Transform, Image, int, int]] = []
        steps: list[Step] = []
        transforms = self.transforms_in_order()
        for index, transform in enumerate(transforms):
            prefix = "" if transforms == [self] else f"{index}."
            first = len(columns)
            for column in transform.columns(image):
                columns.append(dataclasses.replace(column, name=prefix + column.name))
            if type(transform).refine is not Transform.refine:
                refined.append((transform, image, first, len(columns)))
            for step in transform.steps(image, first):
                if isinstance(step, passes.Point) and step.kind == passes.PointKind.NOISE:
                    step = dataclasses.replace(step, column=index)
                steps.append(step)
                image = step.after
        return columns, refined, steps

    def _draw(self, plan: Plan, count: int, device: torch.device, generator: torch.Generator | None) -> Parameters:
        source = device if generator is None else generator.device
        uniform = torch.rand((count, len(plan.names)), generator=generator, device=source, dtype=torch.float32)
        values = torch.addcmul(plan.low, _moved(uniform, device), plan.span)
        if plan.integer is not None:
            values = torch.where(plan.integer, values.floor(), values)
        for transform, image, begin, end in plan.refined:
            values[:, begin:end] = transform.refine(values[:, begin:end], image)
        key = None
        if plan.draws_key:
            key = _moved(torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=source), device)
        return Parameters(values, plan.names, key)

    def _run(self, plan: Plan, images: Tensor, parameters: Parameters) -> Tensor:
        check(
            parameters.values.shape == (len(images), len(plan.names)),
            self,
            f"parameters must be those of {len(images)} images, [{len(images)}, {len(plan.names)}]",
            RuntimeError,
            shape=list(parameters.values.shape),
        )
        # A Compose numbers what the transforms draw, and may hold one that drew alone.
        drawn, asked = ([name.rpartition(".")[2] for name in names] for names in (parameters.names, plan.names))
        check(drawn == asked, self, f"parameters must be {asked}", RuntimeError, names=drawn)
        result = images
        for step in plan.passes:
            result = step.run(result, parameters)
        return result if plan.passes else images.clone()

    def __getstate__(self) -> dict[str, object]:
        """Plans hold tensors of a device, and are made again."""
        return {**self.__dict__, "_plans": {}}


def _moved(draws: Tensor, device: torch.device) -> Tensor:
    return draws if draws.device == device else draws.to(device, non_blocking=True)


def _of_masks(step: Geometry, masks: Image) -> Geometry:
    """The step on such masks, to the nearest pixel."""
    exact = step.mode is None and step.kind != GeometryKind.RESIZED_CROP
    before, after = (masks.resized(image.height, image.width) for image in (step.before, step.after))
    fill = None if step.fill is None else (0.0,) * masks.channels
    return dataclasses.replace(step, before=before, after=after, mode=None if exact else "nearest", fill=fill)


def describe(transform: Transform, image: Image) -> list[Pass]:
    """The passes over such images."""
    return passes.passes(image, transform._walk(image)[2])
