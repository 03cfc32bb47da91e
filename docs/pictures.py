"""Draws every picture of the documentation, with cnnfast's own ops and cnnfast.viz.

    python docs/pictures.py [FOLDER]

writes them into FOLDER, by default docs/pictures, which git ignores. `make docs` calls this before it builds the site.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cnnfast import augment, data, functional, viz
from cnnfast.trainer import Config, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/0.1.0"
EPOCHS = 8

# The lecture's 5x5 example and its kernel, as tests/test_lecture.py has them.
PIXELS = torch.tensor(
    [[60, 113, 56, 139, 85], [73, 121, 54, 84, 128], [131, 99, 70, 129, 127], [80, 57, 115, 69, 134],
     [104, 126, 123, 95, 130]]
).float()  # fmt: skip
SHARPEN = torch.tensor([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]).float()


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 0 to 1, and labels."""
    images, labels = data.load("digits", train=True)
    return images.float() / 255, labels


@functools.cache
def trained() -> Trainer:
    """The lecture's network, trained on the digits."""
    images, labels = data.load("digits", train=False)
    trainer = Trainer("cnnfast", Config(epochs=EPOCHS), digits(), (images.float() / 255, labels))
    for _ in range(EPOCHS):
        trainer.train_epoch()
    return trainer


@functools.cache
def discs() -> torch.Tensor:
    """A colour image [3, 96, 96] of a red, a green and a blue disc; where they overlap, their light adds up."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    centres = ((34, 48), (60, 33), (60, 63))
    return torch.stack([((y - row) ** 2 + (x - column) ** 2 < 24**2).float() for row, column in centres])


def grey(colour: torch.Tensor) -> torch.Tensor:
    """[1, H, W] of [3, H, W]: a 1x1 convolution whose weights are how bright the eye finds red, green and blue."""
    return functional.conv2d(colour, torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1))


def conv(pixels: torch.Tensor, kernel: torch.Tensor = SHARPEN, **arguments: int) -> torch.Tensor:
    """One image, one kernel."""
    return functional.conv2d(pixels.view(1, 1, *pixels.shape[-2:]), kernel.view(1, 1, 3, 3), **arguments)[0, 0]


def pixels() -> Figure:
    image = digits()[0][0, 0]
    small = (255 * image[2:26:3, 2:26:3]).round().int()
    return viz.images([small, 255 * image], titles=["8x8 pixels and their values", "the network's 28x28"], size=4)


def padding() -> Figure:
    padded = torch.nn.functional.pad(PIXELS, (1, 1, 1, 1))
    return viz.images([PIXELS, padded], titles=["5x5", "padding=1: 7x7"])


def sharpening() -> Figure:
    titles = ["5x5", "kernel", "padding=1: 5x5, first 114"]
    return viz.images([PIXELS, SHARPEN, conv(PIXELS, padding=1)], titles=titles)


def stride() -> Figure:
    results = [conv(PIXELS, stride=step) for step in (1, 2)]
    return viz.images([PIXELS, *results], titles=["5x5", "stride=1: 3x3", "stride=2: 2x2"])


def blur_and_sharpen() -> Figure:
    image = grey(discs())
    # The mean of 3x3 neighbours, three times, is a blur.
    blurred = image
    for _ in range(3):
        blurred = functional.avg_pool2d(blurred, 3, stride=1, padding=1)
    sharpened = conv(blurred, padding=1).clamp(0, 1)
    return viz.images([image, blurred, sharpened], titles=["image", "blurred: avg_pool2d", "sharpened: conv2d"])


def filters() -> Figure:
    return viz.feature_maps(trained().model.cnn_layers[0].weight[:, 0], columns=12)


def feature_maps() -> Figure:
    layer = trained().model.cnn_layers[0]
    with torch.inference_mode():
        return viz.feature_maps(functional.conv2d_relu(digits()[0][0], layer.weight, layer.bias, padding=1))


def pooling() -> Figure:
    corner = PIXELS[:4, :4]
    results = [pool(corner[None], 2)[0] for pool in (functional.max_pool2d, functional.avg_pool2d)]
    return viz.images([corner, *results], titles=["4x4", "max_pool2d(2)", "avg_pool2d(2)"], size=3)


def pooled_maps() -> Figure:
    layer = trained().model.cnn_layers[0]
    with torch.inference_mode():
        maps = functional.conv2d_relu(digits()[0][0], layer.weight, layer.bias, padding=1)
        strongest = maps[maps.sum((1, 2)).argmax()][None]
        pooled = [functional.max_pool2d(strongest, 2), functional.avg_pool2d(strongest, 2)]
    titles = ["a feature map, 28x28", "max_pool2d: 14x14", "avg_pool2d: 14x14"]
    return viz.images([strongest, *pooled], titles=titles, values=False)


def colour() -> Figure:
    channels = [channel * torch.eye(3)[c].view(3, 1, 1) for c, channel in enumerate(discs())]
    titles = ["colour, [3, 96, 96]", "red", "green", "blue", "grey, [1, 96, 96]"]
    return viz.images([discs(), *channels, grey(discs())], titles=titles)


def curves() -> Figure:
    return viz.curves(trained().rows)


def results(suite: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{suite}--amd-epyc--cpu.json").read_text())


def speed_ups(suite: str, section: str, mode: str, title: str) -> Figure:
    """Rivals' times over ours, of a committed result's rows of `section` whose case ends in `mode`."""
    result = results(suite)
    rows = [row for row in result["rows"] if row["section"] == section and row["case"].endswith(mode)]
    ratios = [{entry["name"]: entry["ratio"] for entry in row["entries"][1:]} for row in rows]
    about = result["metadata"]
    names = [name for name in about["rivals"] if any(ratio.get(name) for ratio in ratios)]
    batches = len({row["batch"] for row in rows}) > 1
    return viz.bars(
        [f"batch {row['batch']}" if batches else row["case"].removesuffix(mode) for row in rows],
        {name: [ratio.get(name) for ratio in ratios] for name in names},
        title=title,
        xlabel="time / cnnfast's: right of the line cnnfast is faster\n"
        f"{about['cpu']}, {about['threads']} threads, {about['isa']}, {about['dtype']}, {about['date'][:10]}",
        line=1,
    )


def bars(suite: str, section: str, mode: str, title: str) -> Callable[[], Figure]:
    return functools.partial(speed_ups, suite, section, mode, title)


#: what docs/augmentation.md shows of each, in a picture by that name
AUGMENTATIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "rotation": lambda: augment.RandomRotation(30),
    "flip": lambda: augment.RandomHorizontalFlip(p=1),
    "zoom": lambda: augment.RandomZoom(scale=(0.7, 1.3)),
    "crop": lambda: augment.RandomCrop(28, padding=4),
    "affine": lambda: augment.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=10),
    "brightness": lambda: augment.ColorJitter(brightness=0.5),
    "noise": lambda: augment.GaussianNoise(sigma=0.2),
    "pipeline": lambda: augment.Compose(
        [
            augment.RandomRotation(10),
            augment.RandomHorizontalFlip(),
            augment.RandomZoom(scale=(0.9, 1.1)),
            augment.ColorJitter(brightness=0.2),
            augment.RandomCrop(28, padding=2),
            augment.GaussianNoise(sigma=0.05),
        ]
    ),
}


def augmented(name: str) -> Figure:
    batch = digits()[0][:8]
    return viz.before_after(batch, AUGMENTATIONS[name]()(batch, generator=torch.Generator().manual_seed(0)))


#: file name without .svg -> what draws it
PICTURES: dict[str, Callable[[], Figure]] = {
    "pixels": pixels,
    "padding": padding,
    "sharpening": sharpening,
    "stride": stride,
    "blur-and-sharpen": blur_and_sharpen,
    "filters": filters,
    "feature-maps": feature_maps,
    "pooling": pooling,
    "pooled-maps": pooled_maps,
    "colour": colour,
    "curves": curves,
    **{f"augment-{name}": functools.partial(augmented, name) for name in AUGMENTATIONS},
    "benchmark-layers-forward": bars("lecture", "Convolution layers", ", forward", "Its convolution layers, forward"),
    "benchmark-layers-backward": bars(
        "lecture", "Convolution layers", ", forward + backward", "Its convolution layers, forward + backward"
    ),
    "benchmark-network-forward": bars("lecture", "Whole network", ", forward", "The whole network, inference"),
    "benchmark-training-step": bars(
        "lecture", "Whole network", ", training step", "The whole network, a training step"
    ),
    "benchmark-small-forward": bars("small", "Batch 64", ", forward", "Blocks of small networks, batch 64, forward"),
    "benchmark-small-backward": bars(
        "small", "Batch 64", ", forward + backward", "Blocks of small networks, batch 64, forward + backward"
    ),
}


def draw(folder: Path) -> None:
    """Draws all of them; the same results give the same files."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    # torch's own sums in training depend on the number of threads; and steps this small gain little by a second one.
    torch.set_num_threads(1)
    # Text stays text in the SVG; without its date and random names the same picture is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cnnfast"}):
        for name, picture in PICTURES.items():
            picture().savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/pictures")
