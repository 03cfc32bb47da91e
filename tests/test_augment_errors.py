"""cnnfast.augment's errors: each names the rule and the value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cnnfast import augment

BAD_ARGUMENTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "degrees": (augment.RandomRotation, {"degrees": -1}, "RandomRotation: degrees must not be negative.*degrees=-1"),
    "degrees_word": (augment.RandomRotation, {"degrees": None}, "degrees must not be negative.*degrees=None"),
    "degrees_three": (augment.RandomRotation, {"degrees": (1, 2, 3)}, r"pair \(low, high\).*degrees=\(1, 2, 3\)"),
    "degrees_pair": (augment.RandomRotation, {"degrees": (3, 1)}, r"degrees must be .*pair.* got degrees=\(3, 1\)"),
    "expand": (augment.RandomRotation, {"degrees": 1, "expand": True}, "expand must be False.*expand=True"),
    "interpolation": (augment.RandomRotation, {"degrees": 1, "interpolation": "cubic"}, "interpolation must be one of"),
    "center": (augment.RandomRotation, {"degrees": 1, "center": (1,)}, "center must be"),
    "p": (augment.RandomHorizontalFlip, {"p": 1.5}, "p must be a probability.*p=1.5"),
    "scale": (augment.RandomZoom, {"scale": (0, 1)}, r"scale must be .*positive.*scale=\(0, 1\)"),
    "scale_number": (augment.RandomZoom, {"scale": 1.1}, "scale must be a pair .*scale=1.1"),
    "fill": (augment.RandomRotation, {"degrees": 1, "fill": "black"}, "fill must be a number.*fill='black'"),
    "fills": (augment.RandomCrop, {"size": 3, "fill": ()}, r"fill must be a number.*fill=\(\)"),
    "translate_number": (augment.RandomAffine, {"degrees": 0, "translate": 0.1}, "translate must be a pair.*0.1"),
    "size_float": (augment.RandomCrop, {"size": 3.5}, "size must be a positive int or a pair.*size=3.5"),
    "brightness_word": (augment.ColorJitter, {"brightness": "much"}, "brightness must be .*brightness='much'"),
    "contrast_negative": (augment.ColorJitter, {"contrast": -1}, "contrast must be a non-negative.*contrast=-1"),
    "mean_number": (augment.Normalize, {"mean": 0.5, "std": [1]}, "mean must be a sequence of numbers.*mean=0.5"),
    "translate": (augment.RandomAffine, {"degrees": 0, "translate": (2, 0)}, "translate must be a pair of shares"),
    "shear": (augment.RandomAffine, {"degrees": 0, "shear": (1, 2, 3)}, "shear must be a number or a pair"),
    "size": (augment.RandomCrop, {"size": 0}, "size must be a positive int or a pair.*size=0"),
    "padding": (augment.RandomCrop, {"size": 3, "padding": -1}, "padding must be .*non-negative.*padding=-1"),
    "padding_mode": (augment.RandomCrop, {"size": 3, "padding_mode": "edge"}, 'padding_mode must be "constant"'),
    "ratio": (augment.RandomResizedCrop, {"size": 3, "ratio": (0, 1)}, "ratio must be"),
    "share": (augment.RandomResizedCrop, {"size": 3, "scale": (0.5, 2)}, "scale must be shares of at most 1"),
    "antialias": (augment.RandomResizedCrop, {"size": 3, "antialias": True}, "antialias must be False"),
    "brightness": (augment.ColorJitter, {"brightness": (2, 1)}, r"brightness must be .*brightness=\(2, 1\)"),
    "outputs": (augment.Grayscale, {"num_output_channels": 2}, "num_output_channels must be 1 or 3"),
    "sigma": (augment.GaussianNoise, {"sigma": -1}, "sigma must not be negative.*sigma=-1"),
    "std": (augment.Normalize, {"mean": [0], "std": [0]}, "std must not be zero"),
    "mean": (augment.Normalize, {"mean": [0, 1], "std": [1]}, "mean and std must have as many values"),
    "dtype": (augment.ToDtype, {"dtype": torch.int64}, "dtype must be floating.*int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str) -> None:
    make, arguments, message = BAD_ARGUMENTS[name]
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_bad_images() -> None:
    rotation = augment.RandomRotation(10)
    with pytest.raises(RuntimeError, match=r"RandomRotation: images must be \[N, C, H, W\], but got shape=\[3, 8, 8\]"):
        rotation(torch.ones(3, 8, 8))
    with pytest.raises(RuntimeError, match="images must be one of .*dtype=torch.int64"):
        rotation(torch.ones(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="must not require a gradient"):
        rotation(torch.ones(1, 3, 8, 8, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"must not be empty but for their number.*\[1, 3, 0, 8\]"):
        rotation(torch.ones(1, 3, 0, 8))
    with pytest.raises(RuntimeError, match=r"must not be empty but for their number.*\[1, 0, 8, 8\]"):
        rotation(torch.ones(1, 0, 8, 8))
    with pytest.raises(TypeError, match="RandomRotation: images must be a tensor, but got images='ndarray'"):
        rotation(torch.ones(1, 3, 8, 8).numpy())
    flip = augment.RandomHorizontalFlip()
    with pytest.raises(RuntimeError, match=r"parameters must be \['horizontal'\], but got names=\['angle'\]"):
        flip.apply(torch.ones(1, 3, 8, 8), rotation.sample((1, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"RandomCrop: size must not be larger.*size=\(9, 9\), padded=\(8, 8\)"):
        augment.RandomCrop(9)(torch.ones(1, 3, 8, 8))
    assert augment.RandomCrop(9, pad_if_needed=True)(torch.ones(1, 3, 8, 8)).shape == (1, 3, 9, 9)
    with pytest.raises(ValueError, match="fill must be a number, or one for each of 3 channels"):
        augment.RandomRotation(1, fill=(1, 2))(torch.ones(1, 3, 8, 8))
    with pytest.raises(ValueError, match="contrast is of images of 1 or 3 channels, but got channels=2"):
        augment.ColorJitter(contrast=1)(torch.ones(1, 2, 8, 8))
    with pytest.raises(ValueError, match="Grayscale: images must have 3 channels, but got channels=2"):
        augment.Grayscale()(torch.ones(1, 2, 8, 8))
    with pytest.raises(TypeError, match=r"Normalize: images must be floating, but got dtype=torch.uint8"):
        augment.Normalize([0], [1])(torch.ones(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="mean must have 1 value, or one for each of 3 channels"):
        augment.Normalize([0, 0], [1, 1])(torch.ones(1, 3, 8, 8))
    with pytest.raises(TypeError, match="Compose: transforms must be of cnnfast.augment"):
        augment.Compose([torch.nn.ReLU()])
    with pytest.raises(RuntimeError, match=r"parameters must be those of 2 images, \[2, 1\], but got shape=\[1, 1\]"):
        rotation.apply(torch.ones(2, 3, 8, 8), rotation.sample((1, 3, 8, 8)))
    with pytest.raises(RuntimeError, match=r"boxes must be \[N, M, 4\], of 1 images, but got shape=\[1, 4\]"):
        rotation.apply_boxes(torch.ones(1, 4), rotation.sample((1, 3, 8, 8)), (8, 8))
    with pytest.raises(RuntimeError, match=r"images must be \[N, C, H, W\], but got shape=\[3, 8, 8\]"):
        rotation.sample((3, 8, 8))


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "parameters": ({"parameters": torch.ones(2, 1)}, r"a row for each of 1 images.*parameters.shape=\[2, 1\]"),
    "parameters_dtype": ({"parameters": torch.ones(1, 1).double()}, "parameters must be contiguous, 2D and Float"),
    "constants": ({"constants": torch.ones(1)}, "constants must have 3 values from 0 on, but got 1"),
    "options": ({"options": [8, 8, 1]}, r"options must have 5 values, but got options=\[8, 8, 1\]"),
    "size": ({"options": [0, 8, 1, 0, 0]}, r"output's size must be positive.*\(0, 8\)"),
    "channels": ({"options": [8, 8, 2, 0, 0]}, "output channels must be the images', or 1 of 3, but got 2 of 1"),
    "fill": ({"options": [8, 8, 1, 0, 4]}, "constants must have 1 values from 4 on"),
    "geometry": ({"geometry": [0, 8, 8]}, "geometry must have 10 numbers for each of at most 8 steps, but got 3"),
    "kind": ({"geometry": [4, 8, 8, *[-1] * 6, 0]}, "geometric step must be of a known kind, but got kind=4"),
    "step_size": ({"geometry": [0, 7, 8, *[-1] * 6, 0]}, r"must begin with the images' size, but got \(7, 8\)"),
    "column": ({"geometry": [0, 8, 8, 1, *[-1] * 5, 0]}, "parameters must have column 1, but got 1 columns"),
    "window": ({"geometry": [0, 8, 8, *[-1] * 6, 0, 3, 8, 8, 0, 0, 0, 0, -1, -1, 0]}, "resized crop must be the first"),
    "points": ({"points": [9, 0, 0, 0]}, "point step must be of a known kind, but got kind=9"),
    "factor": ({"points": [1, -1, 0, 0]}, "parameters must have column -1"),
    "means": ({"points": [2, 0, 0, 0]}, "contrast needs means"),
    "key": ({"points": [5, 0, 0, 0]}, "noise needs a key"),
    "gray": ({"points": [4, 0, 0, 0]}, "grey is of 3 channels, but got C=1"),
    "outside": ({"points": [8, 1, 0, 0]}, "fill must name a geometric step, but got step 1 of 1"),
    "dtype": ({"dtype": torch.int32}, "images must be uint8, .*dtype=Int"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_of_the_op(name: str) -> None:
    """The kernel reads what these numbers point to."""
    arguments = {
        "images": torch.ones(1, 1, 8, 8),
        "parameters": torch.ones(1, 1),
        "constants": torch.ones(4),
        "means": None,
        "key": None,
        "options": [8, 8, 1, 0, 0],
        "geometry": [0, 8, 8, *[-1] * 6, 0],
        "points": [],
        "dtype": torch.float32,
    }
    torch.ops.cnnfast.augment(*arguments.values())
    changed, message = BAD_CALLS[name]
    with pytest.raises(RuntimeError, match=f"augment: {message}|augment: .*{message}"):
        torch.ops.cnnfast.augment(*(arguments | changed).values())
