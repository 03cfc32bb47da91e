"""Each transform of cnnfast.augment by itself: against float64 references, and torchvision's functionals where it is
installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import augment_reference as reference
import pytest
import torch
from torch import Tensor

from cnnfast import augment
from cnnfast.augment import Parameters

SIZES = [(28, 28), (19, 33), (1, 17), (40, 1), (1, 1)]
needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="no torchvision")


def images(size: tuple[int, int], channels: int = 3, count: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size) + channels)
    values = torch.rand((count, channels, *size), generator=generator)
    return (values * 255).round().to(dtype) if dtype == torch.uint8 else values.to(dtype)


def drawn(transform: augment.Transform, batch: Tensor, seed: int = 0) -> tuple[Parameters, list[dict[str, float]]]:
    """The parameters, and for each image by name."""
    parameters = transform.sample(batch.shape, generator=torch.Generator().manual_seed(seed), dtype=batch.dtype)
    columns = {name: values.tolist() for name, values in parameters.to_dict().items()}
    return parameters, [{name: values[n] for name, values in columns.items()} for n in range(len(batch))]


def check(
    transform: augment.Transform,
    batch: Tensor,
    expected: Callable[[Tensor, dict[str, float]], Tensor],
    tolerance: float = 0,
    differ: float = 0,
    drawing: augment.Transform | None = None,
) -> None:
    """Within the tolerance, but for a share ``differ`` of the pixels, which lie where rounding decides."""
    parameters, rows = drawn(drawing or transform, batch)
    actual = transform.apply(batch, parameters)
    assert actual.dtype == batch.dtype
    wanted = torch.stack([expected(image, row).double() for image, row in zip(batch, rows)])
    assert actual.shape == wanted.shape
    wrong = (actual.double() - wanted).abs() > tolerance
    assert wrong.double().mean() <= differ, (actual.double() - wanted).abs().max()


AFFINE: dict[str, tuple[augment.Transform, Callable[[dict[str, float]], dict[str, Any]]]] = {
    "rotation": (augment.RandomRotation(180), lambda row: {"angle": -row["angle"]}),
    "quarter_turns": (augment.RandomRotation((90, 90)), lambda row: {"angle": -90}),
    "rotation_about": (
        augment.RandomRotation((-20, 70), center=(3, 5.5)),
        lambda row: {"angle": -row["angle"], "center": (3, 5.5)},
    ),
    "zoom": (augment.RandomZoom((0.5, 1.7)), lambda row: {"scale": row["scale"]}),
    "affine": (
        augment.RandomAffine(40, (0.2, 0.3), (0.7, 1.4), (-20, 20, -10, 30)),
        lambda row: {
            "angle": row["angle"],
            "translate": (row["translate_x"], row["translate_y"]),
            "scale": row["scale"],
            "shear": (row["shear_x"], row["shear_y"]),
        },
    ),
    "shear": (augment.RandomAffine(0, shear=30), lambda row: {"shear": (row["shear_x"], 0)}),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", AFFINE)
def test_affine_bilinear(name: str, size: tuple[int, int], isa: str) -> None:
    transform, arguments = AFFINE[name]
    transform.fill = 0.25

    def expected(image: Tensor, row: dict[str, float]) -> Tensor:
        return reference.sample(image, reference.affine_matrix(size, **arguments(row)), "bilinear", 0.25)

    check(transform, images(size), expected, 5e-5)
    check(transform, images(size).to(memory_format=torch.channels_last), expected, 5e-5)
    check(transform, images(size)[..., ::1].double(), expected, 5e-5)
    check(transform, images(size).half(), expected, 2e-3)
    transform.fill = 0
    whole = images(size, dtype=torch.uint8)

    def rounded(image: Tensor, row: dict[str, float]) -> Tensor:
        return reference.sample(image, reference.affine_matrix(size, **arguments(row)), "bilinear").round()

    check(transform, whole, rounded, 1)
    check(transform, whole, rounded, 0, 0.01)


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
@pytest.mark.parametrize("name", ["rotation", "rotation_about", "zoom", "affine"])
def test_affine_nearest(name: str, size: tuple[int, int], isa: str) -> None:
    transform, arguments = AFFINE[name]
    before, transform.interpolation = transform.interpolation, "nearest"

    def expected(image: Tensor, row: dict[str, float]) -> Tensor:
        return reference.sample(image, reference.affine_matrix(size, **arguments(row)), "nearest")

    check(transform, images(size), expected, 0, 0.002)
    check(transform, images(size, dtype=torch.uint8), expected, 0, 0.002)
    transform.interpolation = before


def test_ties_of_nearest_pixels_go_up(isa: str) -> None:
    """Where a size is halved every pixel lies between two; torch's own choice there is rounding's."""
    batch = images((28, 30), 1, 1)
    assert torch.equal(augment.RandomZoom((0.5, 0.5), "nearest")(batch)[..., 7:21, 8:22], batch[..., 1::2, 2:30:2])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_flips_and_crops_copy(size: tuple[int, int], dtype: torch.dtype, isa: str) -> None:
    batch = images(size, dtype=dtype)
    check(augment.RandomHorizontalFlip(), batch, lambda x, row: x.flip(-1) if row["horizontal"] else x)
    check(augment.RandomVerticalFlip(), batch, lambda x, row: x.flip(-2) if row["vertical"] else x)
    for crop in (max(1, size[0] - 3), max(1, size[1] // 2)), (size[0] + 4, size[1] + 1), size:
        check(
            augment.RandomCrop(crop, padding=3, fill=1),
            batch,
            lambda x, row, crop=crop: reference.crop(x, int(row["top"]), int(row["left"]), crop, 3, 1),
        )


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resized_crop(size: tuple[int, int], mode: str, isa: str) -> None:
    for target in (17, 23), (5, 40):
        transform = augment.RandomResizedCrop(target, interpolation=mode)

        def expected(image: Tensor, row: dict[str, float], target: tuple[int, int] = target) -> Tensor:
            top, left, height, width = (int(row[name]) for name in ("top", "left", "height", "width"))
            return reference.resized_crop(image, (top, left, height, width), target, mode)

        check(transform, images(size), expected, 2e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_colors(size: tuple[int, int], channels: int, isa: str) -> None:
    batch, whole = images(size, channels), images(size, channels, dtype=torch.uint8)

    def others(image: Tensor) -> dict[str, Tensor]:
        integer = image.dtype == torch.uint8
        grey = reference.gray(image.double(), integer)
        same = image.double() if channels == 1 else grey
        return {"brightness": torch.zeros(()), "contrast": grey.mean(), "saturation": same}

    for name in ("brightness", "contrast", "saturation"):

        def expected(image: Tensor, row: dict[str, float], name: str = name) -> Tensor:
            bound = 255 if image.dtype == torch.uint8 else 1
            if name == "saturation" and channels == 1:
                return image
            result = reference.blend(image.double(), others(image)[name], row[name], bound)
            return result.floor() if image.dtype == torch.uint8 else result

        transform = augment.ColorJitter(**{name: (0.3, 1.8)})
        check(transform, batch, expected, 1e-6)
        check(transform, batch.half(), expected, 1e-3)
        check(transform, whole, expected, 1)
        check(transform, whole, expected, 0, max(0.02, 2 / whole.numel()))


@pytest.mark.parametrize("outputs", [1, 3])
def test_grayscale(outputs: int, isa: str) -> None:
    batch, whole = images((9, 21)), images((9, 21), dtype=torch.uint8)
    transform = augment.Grayscale(outputs)
    check(transform, batch, lambda x, row: reference.gray(x.double()).expand(outputs, -1, -1), 1e-6)
    check(transform, whole, lambda x, row: reference.gray(x.double(), True).expand(outputs, -1, -1), 1)
    assert torch.equal(augment.Grayscale()(batch[:, :1]), batch[:, :1])


def test_normalize_and_to_dtype(isa: str) -> None:
    batch, whole = images((9, 21)), images((9, 21), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (batch.double() - mean[:, None, None]) / std[:, None, None]
    actual = augment.Normalize(mean.tolist(), std.tolist())(batch)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(augment.ToDtype(torch.float32, scale=True)(whole), whole / 255, rtol=1e-7, atol=0)
    assert torch.equal(augment.ToDtype(torch.float16)(whole), whole.half())
    assert torch.equal(augment.ToDtype(torch.bfloat16, scale=True)(batch), batch.bfloat16())


def test_noise(isa: str) -> None:
    batch = torch.full((8, 3, 40, 50), 0.5)
    transform = augment.GaussianNoise(mean=0.02, sigma=0.05, clip=False)
    noise = (transform(batch, torch.Generator().manual_seed(1)) - batch).double()
    count = noise.numel()
    assert abs(noise.mean() - 0.02) < 5 * 0.05 / math.sqrt(count)
    assert abs(noise.std() / 0.05 - 1) < 5 / math.sqrt(2 * count)
    # Kolmogorov and Smirnov's distance from the normal distribution, at a level of one in a million.
    ordered = ((noise.flatten() - 0.02) / 0.05).sort().values
    ideal = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    steps = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert (ideal - steps).abs().max() < 2.7 / math.sqrt(count)
    # Images, channels and neighbours are not alike.
    for other in (noise.roll(1, 0), noise.roll(1, 1), noise.roll(1, 2), noise.roll(1, 3), noise.roll(16, 3)):
        assert abs(torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1]) < 5 / math.sqrt(count)


def test_noise_is_clipped_and_whole(isa: str) -> None:
    batch = images((30, 30))
    assert augment.GaussianNoise(sigma=2)(batch).aminmax() == (0, 1)
    whole = torch.full((4, 1, 64, 64), 128, dtype=torch.uint8)
    noise = augment.GaussianNoise(sigma=10 / 255)(whole).double() - 128
    # Cut off towards zero: each draw loses half a step of its size on average.
    assert abs(noise.mean()) < 0.5 and 9 < noise.std() < 10.2
    assert augment.GaussianNoise(sigma=4)(whole).aminmax() == (0, 255)


@needs_torchvision
class TestTorchvision:
    """The same functions as users of torchvision call, with the same parameters."""

    @pytest.fixture(autouse=True)
    def functional(self) -> None:
        from torchvision.transforms import v2

        self.F, self.modes = v2.functional, v2.InterpolationMode

    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
    @pytest.mark.parametrize("mode", ["BILINEAR", "NEAREST"])
    def test_geometry(self, mode: str, dtype: torch.dtype) -> None:
        interpolation = getattr(self.modes, mode)
        batch = images((19, 33), dtype=dtype)
        tolerance, differ = (5e-5, 0) if dtype == torch.float32 else (0, 0.01)
        if mode == "NEAREST":
            tolerance, differ = 0, 0.003
        check(
            augment.RandomRotation(180, interpolation),
            batch,
            lambda x, row: self.F.rotate(x, row["angle"], interpolation),
            tolerance,
            differ,
        )
        check(
            augment.RandomZoom((0.6, 1.5), interpolation),
            batch,
            lambda x, row: self.F.affine(x, 0, [0, 0], row["scale"], [0, 0], interpolation),
            tolerance,
            differ,
        )
        check(
            augment.RandomAffine(30, (0.1, 0.2), (0.7, 1.3), (-9, 9, -9, 9), interpolation),
            batch,
            lambda x, row: self.F.affine(
                x,
                row["angle"],
                [row["translate_x"], row["translate_y"]],
                row["scale"],
                [row["shear_x"], row["shear_y"]],
                interpolation,
            ),
            tolerance,
            differ,
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
    def test_copies(self, dtype: torch.dtype) -> None:
        batch = images((19, 33), dtype=dtype)
        check(
            augment.RandomHorizontalFlip(),
            batch,
            lambda x, row: self.F.horizontal_flip(x) if row["horizontal"] else x,
        )
        check(
            augment.RandomCrop((15, 20), padding=[4, 3, 2, 1], fill=1),
            batch,
            lambda x, row: self.F.crop(self.F.pad(x, [4, 3, 2, 1], fill=1), int(row["top"]), int(row["left"]), 15, 20),
        )

    def test_resized_crop(self) -> None:
        check(
            augment.RandomResizedCrop((19, 33)),
            images((19, 33)),
            lambda x, row: self.F.resized_crop(
                x, *(int(row[name]) for name in ("top", "left", "height", "width")), [19, 33], antialias=True
            ),
            2e-5,
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
    def test_colors(self, dtype: torch.dtype) -> None:
        batch = images((19, 33), dtype=dtype)
        tolerance, differ = (1e-6, 0) if dtype == torch.float32 else (0, 0.01)
        for name in ("brightness", "contrast", "saturation"):
            adjust = getattr(self.F, f"adjust_{name}")
            check(
                augment.ColorJitter(**{name: 0.7}),
                batch,
                lambda x, row, adjust=adjust, name=name: adjust(x, row[name]),
                tolerance,
                differ,
            )
        check(augment.Grayscale(), batch, lambda x, row: self.F.rgb_to_grayscale(x), tolerance, differ)
        if dtype == torch.float32:
            mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
            check(augment.Normalize(mean, std), batch, lambda x, row: self.F.normalize(x, mean, std), 5e-6)
