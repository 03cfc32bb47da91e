"""Augmentation's CUDA kernels, on the CPU over the emulation of tests/cuda_host, or on a GPU with --device cuda:
against the CPU's kernels, with the same parameters and the same key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_host.build import build
from test_augment import COLOR, PIPELINES, TRANSFORMS, seeded, smooth
from test_cuda_kernels import SCHEDULES
from torch import Tensor

from cnnfast import augment, library
from cnnfast.augment import Parameters, passes
from cnnfast.augment.transform import Transform

CASES: dict[str, Transform] = (
    {f"augment_{name}": transform for name, transform in TRANSFORMS.items()}
    | {f"augment_{name}": augment.Compose(transforms) for name, (transforms, _, _) in PIPELINES.items()}
    | {
        "augment_nearest": augment.RandomAffine(30, (0.2, 0.2), (0.6, 1.5), 9, "nearest", fill=(0.1, 0.2, 0.3)),
        "augment_loud": augment.GaussianNoise(0.1, 3, clip=False),
    }
)


@pytest.fixture(scope="module")
def kernels(device: torch.device) -> Iterator[None]:
    """On the CPU the emulated ops in the place of the CPU's, for who asks for them."""
    if device.type == "cuda":
        assert library.cuda_error is None, library.cuda_error
    else:
        torch.ops.load_library(str(build()))
    yield


def results_on(device: torch.device, transform: Transform, images: Tensor, parameters: Parameters) -> Tensor:
    """What the CUDA kernels make of it: the same bits each time, in every order of threads and blocks."""
    key = None if parameters.key is None else parameters.key.to(device)
    there = Parameters(parameters.values.to(device), parameters.names, key)
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(passes, "_AUGMENT", torch.ops.cnnfast_emulated.augment.default)
            patch.setattr(passes, "_GRAY_MEAN", torch.ops.cnnfast_emulated.augment_gray_mean.default)
        results = []
        for schedule in SCHEDULES:
            if device.type == "cpu":
                torch.ops.cnnfast_emulated.set_schedule(*schedule)
            results.append(transform.apply(images.to(device), there))
    for result in results:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0, equal_nan=True)
    return results[0].cpu()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_as_on_the_cpu(name: str, dtype: torch.dtype, kernels: None, device: torch.device) -> None:
    transform = CASES[name]
    if dtype == torch.uint8 and "normalize" in repr(transform).lower():
        transform = augment.Compose([augment.ToDtype(torch.float32, scale=True), transform])
    images = (smooth(5, 3, (28, 70)) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    if dtype == torch.float64:
        images = images.to(memory_format=torch.channels_last)
    parameters = transform.sample(images.shape, seeded(), dtype=dtype)
    expected = transform.apply(images, parameters)
    actual = results_on(device, transform, images, parameters)
    assert actual.dtype == expected.dtype and actual.stride() == expected.stride()
    difference = (actual.double() - expected.double()).abs()
    if actual.dtype == torch.uint8:  # rounding moves some across a whole number
        assert difference.max() <= 1 and (difference > 0).double().mean() < 0.003
    else:
        # A nearest pixel may be a neighbour, and an edge's pixel outside.
        limit = 2e-2 if dtype == torch.bfloat16 else 3e-5
        assert (difference > limit).double().mean() <= (0.002 if "nearest" in repr(transform) else 0), difference.max()


@pytest.mark.parametrize("channels", [1, 2])
def test_augment_of_other_channels(channels: int, kernels: None, device: torch.device) -> None:
    transform = augment.Compose([augment.RandomRotation(30, fill=0.5), augment.RandomCrop(40, padding=9)])
    images = smooth(4, channels, (33, 37))
    parameters = transform.sample(images.shape, seeded())
    expected = transform.apply(images, parameters)
    torch.testing.assert_close(results_on(device, transform, images, parameters), expected, rtol=0, atol=3e-5)
    if channels == 1:
        parameters = COLOR.sample(images.shape, seeded())
        expected = COLOR.apply(images, parameters)
        torch.testing.assert_close(results_on(device, COLOR, images, parameters), expected, rtol=0, atol=3e-6)


def test_augment_copies_next_to_nan(kernels: None, device: torch.device) -> None:
    images = smooth(2)
    images[:, :, 3, 5] = torch.nan
    transform = augment.Compose([augment.RandomHorizontalFlip(1.0), augment.RandomCrop(images.shape[2:], padding=1)])
    parameters = transform.sample(images.shape, seeded())
    expected = transform.apply(images, parameters)
    assert expected.isnan().any(1).sum() <= 2
    actual = results_on(device, transform, images, parameters)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_augment_of_no_images(kernels: None, device: torch.device) -> None:
    images = torch.empty(0, 3, 8, 9)
    assert results_on(device, COLOR, images, COLOR.sample(images.shape)).shape == images.shape
