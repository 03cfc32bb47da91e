"""A picture of a result: what each layer reaches, and the most that arithmetic and memory would let it reach.

After Williams, Waterman and Patterson, 2009 (doi 10.1145/1498765.1498785).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .plot import COLOURS, pyplot_of_files, save_figure
from .results import Result, Row

__all__ = ["draw"]

# A section's colour and its mode's mark; there are more sections than colours in none of the suites.
MARKS = {"forward": "o", "backward": "^", "forward + backward": "s"}


def draw(result: Result, paths: Sequence[Path]) -> bool:
    """Draws the rows whose operations and bytes are known; False, with nothing written, without any or matplotlib."""
    rows = [row for row in result.rows if row.gflop and row.gbyte and row.ours.gflops]
    bandwidth = result.metadata.get("copy_gb_per_s")
    pyplot = pyplot_of_files()
    if pyplot is None or not rows or not bandwidth:
        return False
    figure, axis = pyplot.subplots(figsize=(10, 6), layout="constrained")
    _roof(axis, rows, max(result.metadata["peak_gflops"].values()), bandwidth)
    sections = list(dict.fromkeys(row.section for row in rows))
    for index, section in enumerate(sections):
        for mode, mark in MARKS.items():
            points = [row for row in rows if row.section == section and row.mode == mode]
            if points:
                _points(axis, points, f"{section}, {mode}", COLOURS[index % len(COLOURS)], mark)
    about = result.metadata
    axis.set_title(
        f"{about['suite']}: {about['cpu']}, {about['threads']} threads, {about['dtype']}, {about['date'][:10]}; "
        "small and grey: torch in its best layout",
        fontsize=10,
    )
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, paths)
    pyplot.close(figure)
    return True


def _intensity(row: Row) -> float:
    """Operations for each byte that must move."""
    assert row.gflop and row.gbyte
    return row.gflop / row.gbyte


def _roof(axis: Any, rows: list[Row], peak: float, bandwidth: float) -> None:
    ridge = peak / bandwidth
    left, right = min(*map(_intensity, rows), ridge) / 2, max(*map(_intensity, rows), ridge) * 2
    axis.plot([left, ridge, right], [left * bandwidth, peak, peak], color="black", linewidth=1)
    axis.annotate(f"{peak:.0f} GFLOP/s", (right, peak), ha="right", va="bottom", fontsize=8)
    axis.annotate(f"{bandwidth:.0f} GB/s", (left, left * bandwidth), ha="left", va="bottom", fontsize=8)
    axis.set(
        xscale="log", yscale="log", xlabel="operations for each byte of input, weight and output", ylabel="GFLOP/s"
    )
    axis.spines[["top", "right"]].set_visible(False)


def _points(axis: Any, rows: list[Row], label: str, colour: str, mark: str) -> None:
    for row in rows:
        best = row.torchs_best
        if best is not None and best.gflops:
            # The line joins a row's two points.
            x = [_intensity(row)] * 2
            axis.plot(x, [row.ours.gflops, best.gflops], color="#AAAAAA", linewidth=0.6, zorder=1)
            axis.plot(x[:1], [best.gflops], mark, color="#AAAAAA", markersize=3, zorder=1)
    axis.plot(
        [_intensity(row) for row in rows],
        [row.ours.gflops for row in rows],
        mark,
        color=colour,
        markersize=6,
        label=label,
        markerfacecolor="none" if any(row.layout == "channels_last" for row in rows) else colour,
    )
