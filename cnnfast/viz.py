"""The few drawings that teach what the ops do: pixels, feature maps, before and after, curves, bars.

Needs matplotlib: ``pip install "cnnfast[viz]"``. Every function returns a new ``matplotlib.figure.Figure``, which a
notebook with ``%matplotlib inline`` shows and ``figure.savefig("name.svg")`` writes. No window is opened and
``matplotlib.pyplot`` is not used: nothing to choose a backend for, nothing to close.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bars", "before_after", "curves", "feature_maps", "image", "images"]

#: Okabe and Ito's palette: distinguishable without colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_TILE = 1.4  # inches of one small picture


def image(pixels: Tensor, *, values: bool | None = None, title: str = "") -> Figure:
    """Draws one image, with the value of every pixel written into it if it is small.

    Args:
        pixels: [H, W] or [1, H, W], grey, or [3, H, W], colour. Grey values go from black, the smallest, to white;
            colour is of 0 to 1 if floating, else 0 to 255.
        values: write the values; default only where there are at most 16 rows and columns. Grey images only.
        title: text above it.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``pixels`` is no image, or values are asked for of a colour image.

    Example:
        >>> figure = image(torch.tensor([[60, 113, 56], [73, 121, 54], [131, 99, 70]]), title="3x3 pixels")
        >>> [text.get_text() for text in figure.axes[0].texts][:3]
        ['60', '113', '56']
    """
    return images([pixels], values=values, titles=[title])


def images(
    many: Sequence[Tensor], *, titles: Sequence[str] = (), values: bool | None = None, size: float | None = None
) -> Figure:
    """Draws images side by side, each as :func:`image` does.

    Args:
        many: the images; their sizes may differ.
        titles: text above each; none where it is shorter.
        values: as in :func:`image`, for all of them.
        size: inches of each; default by its number of columns, if values are written.

    Returns:
        The figure.

    Raises:
        ImportError, ValueError: as :func:`image`; ``many`` is empty.

    Example:
        >>> grey = torch.arange(16).view(4, 4)
        >>> len(images([grey, grey.flip(1)], titles=["before", "after"]).axes)
        2
    """
    if not len(many):
        raise ValueError("viz: expected at least one image, but got none")
    prepared = [_prepared(pixels) for pixels in many]
    written = [
        pixels.dim() == 2 and max(pixels.shape) <= 16 if values is None else values and _grey(pixels)
        for pixels in prepared
    ]
    sizes = [size or (max(2.2, 0.5 * pixels.shape[1]) if text else 2.2) for pixels, text in zip(prepared, written)]
    tallest = max(width * pixels.shape[0] / pixels.shape[1] for width, pixels in zip(sizes, prepared))
    figure = _figure(sum(sizes), tallest + 0.4)
    axes = figure.subplots(1, len(prepared), squeeze=False, width_ratios=sizes)[0]
    for axis, pixels, text, title in zip(axes, prepared, written, [*titles, *[""] * len(prepared)]):
        _draw(axis, pixels, title)
        if text:
            _write_values(axis, pixels)
    return figure


def feature_maps(maps: Tensor, *, columns: int = 6, titles: Sequence[str] = ()) -> Figure:
    """Draws the feature maps of one image as a grid, all on the same scale.

    Args:
        maps: [K, P, Q], or [1, K, P, Q].
        columns: pictures in a row, at most.
        titles: text above each; default its number.

    Returns:
        The figure, with a bar of the scale.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``maps`` has another shape, or nothing in it.

    Example:
        >>> maps = cnnfast.Conv2d(1, 12, 3, padding=1)(torch.randn(1, 28, 28))
        >>> len(feature_maps(maps).axes)  # twelve maps and the scale
        13
    """
    if maps.dim() == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.dim() != 3 or not maps.numel():
        raise ValueError(f"viz: maps must be [K, P, Q], not empty, but got maps.shape={list(maps.shape)}")
    maps = maps.detach().cpu().float()
    columns = min(columns, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = _figure(_TILE * columns + 0.8, (_TILE + 0.25) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    titles = [*titles, *[""] * len(maps)] if titles else [str(k) for k in range(len(maps))]
    for axis, one, title in zip(axes, maps, titles):
        drawn = _draw(axis, one, title, low=maps.min().item(), high=maps.max().item(), colours="viridis")
    for axis in axes[len(maps) :]:
        axis.remove()
    figure.colorbar(drawn, ax=figure.axes, shrink=0.8)
    return figure


def before_after(before: Tensor, after: Tensor, *, count: int = 8, titles: tuple[str, str] | None = None) -> Figure:
    """Draws the first images of a batch in one row, and what became of each in a row below.

    Args:
        before: [N, C, H, W], C 1 or 3; values as in :func:`image`, but grey is 0 to 1 if floating, else 0 to 255.
        after: the same of the same N; sizes and channels may differ.
        count: images drawn, at most.
        titles: text beside each row; default ("before", "after").

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: not two batches of the same number of images.

    Example:
        >>> batch = torch.rand(32, 1, 28, 28)
        >>> len(before_after(batch, batch.flip(3), count=5).axes)
        10
    """
    for batch in (before, after):
        if batch.dim() != 4 or not len(batch) or len(batch) != len(before):
            raise ValueError(
                "viz: before and after must be [N, C, H, W] of the same N, but got "
                f"before.shape={list(before.shape)}, after.shape={list(after.shape)}"
            )
    count = min(count, len(before))
    figure = _figure(_TILE * count + 0.4, 2 * _TILE)
    axes = figure.subplots(2, count, squeeze=False)
    for row, batch, title in zip(axes, (before, after), titles or ("before", "after")):
        high = 1 if batch.is_floating_point() else 255
        for axis, pixels in zip(row, batch):
            _draw(axis, _prepared(pixels), low=0, high=high)
        row[0].set_ylabel(title)
    return figure


def curves(rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draws loss and accuracy over the epochs.

    Args:
        rows: what a training leaves: the list of rows that ``cnnfast.trainer.Trainer.rows`` is, each with epoch, loss,
            train_accuracy and test_accuracy; or several such lists by name, as the result of ``cnnfast.train.run`` has
            them under "epochs".

    Returns:
        The figure, with loss on the left and accuracy of both halves on the right.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no rows, or more runs than colours.

    Example:
        >>> rows = [{"epoch": 1, "loss": 0.9, "train_accuracy": 0.7, "test_accuracy": 0.8},
        ...         {"epoch": 2, "loss": 0.3, "train_accuracy": 0.9, "test_accuracy": 0.9}]
        >>> [axis.get_ylabel() for axis in curves(rows).axes]
        ['mean loss', 'accuracy, %']
    """
    runs = dict(rows) if isinstance(rows, Mapping) else {"": rows}
    if not runs or not all(runs.values()):
        raise ValueError("viz: expected rows of at least one epoch, but got none")
    if len(runs) > len(COLOURS):
        raise ValueError(f"viz: at most {len(COLOURS)} runs can be told apart, but got {len(runs)}")
    figure = _figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    for (name, run), colour in zip(runs.items(), COLOURS):
        epochs = [row["epoch"] for row in run]
        label = f"{name}, " if name else ""
        left.plot(epochs, [row["loss"] for row in run], "o-", color=colour, label=f"{label}train")
        for half, style in (("train", "o-"), ("test", "s--")):
            accuracy = [100 * row[f"{half}_accuracy"] for row in run]
            right.plot(epochs, accuracy, style, color=colour, label=f"{label}{half}", markersize=4)
    left.set_ylim(bottom=0)
    for axis, what in ((left, "mean loss"), (right, "accuracy, %")):
        axis.set_xlabel("epoch")
        axis.set_ylabel(what)
        axis.legend(frameon=False)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def bars(
    labels: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    *,
    title: str = "",
    xlabel: str = "",
    line: float | None = None,
) -> Figure:
    """Draws horizontal bars in groups: a group for each label, in it a bar for each name.

    Args:
        labels: of the groups, from the top.
        values: by name, a number for each label; None leaves the bar out.
        title: text above it.
        xlabel: what the numbers are.
        line: a vertical line, at 1 for ratios of times.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a name has not as many numbers as there are labels, or there are more names than colours.

    Example:
        >>> figure = bars(["batch 1", "batch 64"], {"torch eager": [1.9, 6.6], "torch.compile": [None, 2.8]}, line=1)
        >>> len(figure.axes[0].patches)
        3
    """
    if not labels or not values or any(len(numbers) != len(labels) for numbers in values.values()):
        raise ValueError(f"viz: expected {len(labels)} numbers, one for each label, for each of {list(values)}")
    if len(values) > len(COLOURS):
        raise ValueError(f"viz: at most {len(COLOURS)} names can be told apart, but got {len(values)}")
    height = 0.8 / len(values)
    figure = _figure(8, 1.2 + 0.2 * len(labels) * (len(values) + 0.6))
    axis = figure.subplots()
    for i, (name, numbers) in enumerate(values.items()):
        known = [(group, number) for group, number in enumerate(numbers) if number is not None]
        places = [group + (i - (len(values) - 1) / 2) * height for group, _ in known]
        drawn = axis.barh(places, [number for _, number in known], height, color=COLOURS[i], label=name)
        axis.bar_label(drawn, fmt=" {:.3g}", fontsize=8)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    if line is not None:
        axis.axvline(line, color="black", linewidth=0.8)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(xlabel)
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    if len(values) > 1:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("viz: drawing needs matplotlib; pip install 'cnnfast[viz]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _prepared(pixels: Tensor) -> Tensor:
    """[H, W], or [H, W, 3] as matplotlib takes colour, on the CPU."""
    pixels = pixels.detach().cpu()
    if pixels.dim() == 3 and len(pixels) == 1:
        pixels = pixels[0]
    elif pixels.dim() == 3 and len(pixels) == 3:
        pixels = pixels.permute(1, 2, 0)
    elif pixels.dim() != 2:
        raise ValueError(
            f"viz: pixels must be [H, W], [1, H, W] or [3, H, W], but got pixels.shape={list(pixels.shape)}"
        )
    if not pixels.numel():
        raise ValueError(f"viz: pixels must not be empty, but got pixels.shape={list(pixels.shape)}")
    # numpy has no bfloat16.
    return pixels.float() if pixels.is_floating_point() else pixels


def _grey(pixels: Tensor) -> bool:
    if pixels.dim() != 2:
        raise ValueError("viz: values are written into grey images only, but got a colour image")
    return True


def _draw(
    axis: Axes,
    pixels: Tensor,
    title: str = "",
    low: float | None = None,
    high: float | None = None,
    colours: str = "gray",
) -> Any:
    """Draws prepared pixels, without ticks; grey from ``low`` to ``high``, by default its own smallest and largest."""
    if pixels.dim() == 3:
        pixels = pixels.clamp(0, 1) if pixels.is_floating_point() else pixels.clamp(0, 255).to(torch.uint8)
    drawn = axis.imshow(pixels.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=9)
    return drawn


def _write_values(axis: Axes, pixels: Tensor) -> None:
    """Each pixel's value in it, black on bright ones and white on dark ones."""
    middle = (pixels.min().item() + pixels.max().item()) / 2
    for row, line in enumerate(pixels.tolist()):
        for column, value in enumerate(line):
            colour = "black" if value > middle else "white"
            axis.text(column, row, f"{value:.4g}", ha="center", va="center", color=colour, fontsize=8)
