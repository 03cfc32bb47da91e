"""The suite `augment`: the lecture's data augmentation by cnnfast, torchvision and kornia; and beside a training step.

Everyone draws for themselves, so what is compared before timing are single steps whose parameters leave nothing open.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cnnfast import augment
from cnnfast.models import LectureCNN

from .case import OURS, Case, NotInstalled
from .results import Row
from .suites import Options
from .timing import Contestant
from .work import STEP, Work, runner

__all__ = ["BATCHES", "RIVALS", "Settings", "cases"]

BATCHES: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "cpu": ((256, 1, 28), (32, 3, 224)),
    "cuda": ((4096, 1, 28), (256, 3, 224)),
}
# Bilinear sampling of rivals may blend an edge's pixels otherwise.
LIMIT = 2e-3

Call = Callable[[Tensor], Tensor]

SIX = ("rotation", "flip", "zoom", "brightness", "crop", "noise")
# Section and steps.
PIPELINES: Mapping[str, tuple[str, ...]] = {"Six steps": SIX, "Flip and padded crop": ("flip", "crop")}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The six steps' arguments: of a range each, or of one value."""

    degrees: tuple[float, float] = (-15, 15)
    flip: float = 0.5
    scale: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.8, 1.2)
    size: int = 28
    padding: int = 2
    sigma: float = 0.05

    @classmethod
    def fixed(cls, size: int) -> Settings:
        """Nothing is drawn: the crop is the whole padded image."""
        return cls((10, 10), 1.0, (1.05, 1.05), (1.1, 1.1), size + 4, 2, 0.0)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise NotInstalled(f"no package {name.split('.')[0]}: {str(error).splitlines()[0]}") from error


def _ours(s: Settings) -> dict[str, Any]:
    return {
        "rotation": augment.RandomRotation(s.degrees),
        "flip": augment.RandomHorizontalFlip(s.flip),
        "zoom": augment.RandomZoom(s.scale),
        "brightness": augment.ColorJitter(brightness=s.brightness),
        "crop": augment.RandomCrop(s.size, padding=s.padding),
        "noise": augment.GaussianNoise(sigma=s.sigma),
    }


def _torchvision(s: Settings) -> dict[str, Any]:
    v2 = _module("torchvision.transforms.v2")
    bilinear = v2.InterpolationMode.BILINEAR
    return {
        "rotation": v2.RandomRotation(s.degrees, bilinear),
        "flip": v2.RandomHorizontalFlip(s.flip),
        "zoom": v2.RandomAffine(0, scale=s.scale, interpolation=bilinear),
        "brightness": v2.ColorJitter(brightness=s.brightness),
        "crop": v2.RandomCrop(s.size, padding=s.padding),
        "noise": v2.GaussianNoise(sigma=s.sigma),
    }


def _kornia(s: Settings) -> dict[str, Any]:
    k = _module("kornia.augmentation")
    return {
        "rotation": k.RandomRotation(s.degrees, p=1.0),
        "flip": k.RandomHorizontalFlip(p=s.flip),
        "zoom": k.RandomAffine(0.0, scale=s.scale, p=1.0),
        "brightness": k.ColorJitter(brightness=s.brightness, p=1.0),
        "crop": k.RandomCrop((s.size, s.size), padding=s.padding, p=1.0),
        "noise": k.RandomGaussianNoise(0.0, s.sigma, p=1.0),
    }


def _our_pipeline(steps: dict[str, Any]) -> Call:
    return augment.Compose(list(steps.values()))


def _in_turn(steps: dict[str, Any]) -> Call:
    def call(images: Tensor) -> Tensor:
        for step in steps.values():
            images = step(images)
        return images

    return call


def _kornia_pipeline(steps: dict[str, Any]) -> Call:
    return _module("kornia.augmentation").AugmentationSequential(*steps.values(), data_keys=["input"])


def _each_image(steps: dict[str, Any]) -> Call:
    one = _in_turn(steps)
    return lambda images: torch.stack([one(image) for image in images])


# Name in the table: how its steps are made, how they become a pipeline.
RIVALS: Mapping[str, tuple[Callable[[Settings], dict[str, Any]], Callable[[dict[str, Any]], Call]]] = {
    OURS: (_ours, _our_pipeline),
    "torchvision v2, one draw a batch": (_torchvision, _in_turn),
    "torchvision v2, image by image": (_torchvision, _each_image),
    "kornia": (_kornia, _kornia_pipeline),
}


def _images(count: int, channels: int, size: int, device: str) -> Tensor:
    """Smooth, as photographs mostly are, and dark at the edge."""
    torch.manual_seed(0)
    coarse = torch.rand(count, channels, 4, 4)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    window = torch.sin(torch.linspace(0, torch.pi, size)).clamp_min(0)
    return (smooth.clamp(0, 0.9) * window * window[:, None]).to(device)


def _contestant(name: str, images: Tensor, settings: Settings, steps: tuple[str, ...] = SIX) -> Contestant:
    make, pipeline = RIVALS[name]
    made = make(settings)
    call = pipeline({step: made[step] for step in steps})

    def outputs() -> dict[str, Tensor]:
        fixed = make(Settings.fixed(images.shape[-1]))
        return {step: fixed[step](images[:2]) for step in steps}

    return Contestant(name, lambda: call(images), outputs)


def _reference(images: Tensor, steps: tuple[str, ...]) -> dict[str, Tensor]:
    """What the fixed steps do to the first two images, in float64."""
    x, s = images[:2].double().cpu(), Settings.fixed(images.shape[-1])

    def sampled(matrix: list[list[float]]) -> Tensor:
        theta = torch.tensor(matrix, dtype=torch.float64).expand(len(x), 2, 3)
        grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)

    angle = torch.tensor(s.degrees[0] * torch.pi / 180)
    cosine, sine, zoom = float(angle.cos()), float(angle.sin()), 1 / s.scale[0]
    expected = {
        "rotation": sampled([[cosine, -sine, 0], [sine, cosine, 0]]),
        "flip": x.flip(-1),
        "zoom": sampled([[zoom, 0, 0], [0, zoom, 0]]),
        "brightness": (x * s.brightness[0]).clamp(0, 1),
        "crop": torch.nn.functional.pad(x, (s.padding,) * 4),
        "noise": x,
    }
    return {step: expected[step] for step in steps}


def cases(options: Options) -> Iterator[Case | Row]:
    """The suite; quick: small images alone, no image-by-image rival."""
    batches = BATCHES[options.device]
    for count, channels, size in batches[:1] if options.quick else batches:
        images = _images(count, channels, size, options.device)
        settings = dataclasses.replace(Settings(), size=size, padding=2 if size < 100 else 16)
        names = [name for name in RIVALS if not (options.quick and "image by image" in name)]
        for section, steps in PIPELINES.items():
            yield Case(
                section,
                ", ".join(steps),
                f"{count}x{channels}x{size}x{size}",
                count,
                None,
                {name: functools.partial(_contestant, name, images, settings, steps) for name in names},
                functools.partial(_reference, images, steps),
                LIMIT,
                gbyte=2 * images.nbytes / 1e9,
                mode="augmentation",
            )
    yield _beside_a_step(*batches[0][:1], options)


def _beside_a_step(count: int, options: Options) -> Case:
    """Augmentation beside the training step of the lecture's network on as many images."""
    images = _images(count, 1, 28, options.device)

    def step() -> Contestant:
        model = LectureCNN().to(options.device)
        target = torch.randint(10, (count,), device=options.device)
        run = runner(model, Work(model, model, images, STEP, target=target))
        # What a step computes is the suite `lecture`'s to check; here it is time alone.
        return Contestant("training step of the network", run.call, lambda: {"noise": images[:2]})

    ours = functools.partial(_contestant, OURS, images, Settings())

    def augmentation() -> Contestant:
        made = ours()
        return dataclasses.replace(made, outputs=lambda: {"noise": made.outputs()["noise"]})

    return Case(
        "Beside a training step",
        "the six steps",
        f"{count}x1x28x28",
        count,
        None,
        {OURS: augmentation, "training step of the network": step},
        lambda: {"noise": images[:2].double()},
        mode="augmentation",
    )
