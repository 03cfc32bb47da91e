"""A picture of a result: what each layer reaches, and the most that arithmetic and memory would let it reach.

After Williams, Waterman and Patterson, 2009 (doi 10.1145/1498765.1498785).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .plot import COLOURS, pyplot_of_files, save_figure
from .results import Result, Row
from .work import BACKWARD, FORWARD, GRADIENTS

__all__ = ["draw"]

# A mode's mark; a section has a colour.
MARKS = {FORWARD: "o", GRADIENTS: "^", BACKWARD: "s"}
GREY = "#AAAAAA"


def draw(result: Result, paths: Sequence[Path]) -> bool:
    """Draws the rows whose operations and bytes are known; False, with nothing written, without any or matplotlib."""
    rows = [row for row in result.rows if row.gflop and row.gbyte and row.ours.gflops and row.mode in MARKS]
    bandwidth = result.metadata.get("copy_gb_per_s")
    pyplot = pyplot_of_files()
    if pyplot is None or not rows or not bandwidth:
        return False
    figure, axis = pyplot.subplots(figsize=(10, 6), layout="constrained")
    _roof(axis, rows, max(result.metadata["peak_gflops"].values()), bandwidth)
    colours = dict(zip(dict.fromkeys(row.section for row in rows), itertools.cycle(COLOURS)))
    for row in rows:
        _point(axis, row, colours[row.section])
    _legend(axis, colours, dict.fromkeys(row.mode for row in rows))
    about = result.metadata
    axis.set_title(
        f"{about['suite']}: {about['cpu']}, {about['threads']} threads, {about['dtype']}, {about['date'][:10]}\n"
        "hollow: channels_last; small and grey, joined to ours: torch in its best layout",
        fontsize=9,
        loc="left",
    )
    save_figure(figure, paths)
    pyplot.close(figure)
    return True


def _intensity(row: Row) -> float:
    """Operations for each byte that must move."""
    assert row.gflop and row.gbyte
    return row.gflop / row.gbyte


def _roof(axis: Any, rows: list[Row], peak: float, bandwidth: float) -> None:
    from matplotlib import ticker

    ridge = peak / bandwidth
    left, right = min(*map(_intensity, rows), ridge) / 2, max(*map(_intensity, rows), ridge) * 2
    axis.plot([left, ridge, right], [left * bandwidth, peak, peak], color="black", linewidth=1)
    axis.annotate(f"{peak:.0f} GFLOP/s", (right, peak), ha="right", va="bottom", fontsize=8)
    axis.annotate(f"{bandwidth:.0f} GB/s", (left, left * bandwidth), ha="left", va="bottom", fontsize=8)
    axis.set(
        xscale="log", yscale="log", xlabel="operations for each byte of input, weight and output", ylabel="GFLOP/s"
    )
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        scale.set_minor_locator(ticker.NullLocator())
        scale.set_major_formatter("{x:g}")
        scale.set_tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _point(axis: Any, row: Row, colour: str) -> None:
    """Ours and, joined to it, torch's."""
    x, mark, best = _intensity(row), MARKS[row.mode], row.torchs_best
    if best is not None and best.gflops:
        axis.plot([x, x], [row.ours.gflops, best.gflops], color=GREY, linewidth=0.6, zorder=1)
        axis.plot([x], [best.gflops], mark, color=GREY, markersize=3, zorder=1)
    face = "none" if "channels_last" in row.shape else colour
    axis.plot([x], [row.ours.gflops], mark, color=colour, markerfacecolor=face)


def _legend(axis: Any, colours: Mapping[str, str], modes: Iterable[str]) -> None:
    """Colours are sections, marks are modes."""
    entries = [(name, "o", colour) for name, colour in colours.items()]
    entries += [(mode, MARKS[mode], GREY) for mode in modes]
    for name, mark, colour in entries:
        axis.plot([], [], mark, color=colour, label=name)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
