"""A picture of a result: in each case, how many times cnnfast's time every rival takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnfast.viz import COLOURS

from .results import Result, Row

__all__ = ["COLOURS", "draw", "pyplot_of_files", "save_figure"]

MOST_ROWS_BESIDE_ANOTHER = 16


def draw(result: Result, paths: Sequence[Path]) -> bool:
    """Draws the timed rows into ``paths`` (.png, .svg); False, with nothing written, without matplotlib."""
    pyplot = pyplot_of_files()
    if pyplot is None:
        return False
    panels: dict[str, list[Row]] = {}
    for row in result.rows:
        if row.unit == "ms" and len(row.entries) > 1:
            panels.setdefault(_panel(row), []).append(row)
    rivals = list(dict.fromkeys(e.name for rows in panels.values() for row in rows for e in row.entries[1:]))
    if not rivals:
        return False
    columns = 1 if max(map(len, panels.values())) > MOST_ROWS_BESIDE_ANOTHER else 2
    lines = -(-len(panels) // columns)
    bars = [_bars(rows) for rows in panels.values()]
    heights = [0.55 + 0.15 * max(bars[i * columns : (i + 1) * columns]) for i in range(lines)]
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(12, 1 + sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, rows) in zip(axes.flat, panels.items()):
        _panel_of_bars(axis, title, rows, dict(zip(rivals, COLOURS, strict=False)))
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS[: len(rivals)]]
    about = result.metadata
    title = (
        f"Rival's time / cnnfast's: {about['cpu']}, {about['threads']} threads, {about['dtype']}, {about['date'][:10]}"
    )
    figure.suptitle(title, fontsize=11)
    figure.legend(handles, rivals, loc="outside lower center", ncols=len(rivals), frameon=False)
    save_figure(figure, paths)
    pyplot.close(figure)
    return True


def pyplot_of_files() -> Any:
    """matplotlib.pyplot without windows, or None where matplotlib or what it needs is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    return pyplot


def save_figure(figure: Any, paths: Sequence[Path]) -> None:
    import matplotlib

    # Text stays text in the SVG; without its date and random names the same result gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cnnfast"}):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(row: Row) -> str:
    """Rows that differ in their batch alone share a panel; single layers share one for each section."""
    return row.case if row.section in ("Convolution layers", "Whole network", "Fused blocks") else row.section


def _rivals(rows: list[Row]) -> list[str]:
    """Those with anything to show in these rows."""
    return list(dict.fromkeys(e.name for row in rows for e in row.entries[1:] if e.status != "skipped"))


def _bars(rows: list[Row]) -> int:
    return len(rows) * max(1, len(_rivals(rows)))


def _panel_of_bars(axis: Any, title: str, rows: list[Row], colours: Mapping[str, str]) -> None:
    """Horizontal bars, a group for each row; right of 1 cnnfast is faster."""
    rivals = _rivals(rows)
    height = 0.8 / max(1, len(rivals))
    longest = max((e.ratio for row in rows for e in row.entries if e.ratio is not None), default=1)
    for group, row in enumerate(rows):
        for i, rival in enumerate(rivals):
            entry = row.entry(rival)
            y = group + (i - (len(rivals) - 1) / 2) * height
            if entry is None or entry.status == "skipped":
                continue
            if entry.ratio is None:
                axis.text(0, y, f" {rival}: {entry.status}", va="center", fontsize=7, color="#555555")
                continue
            axis.barh(y, entry.ratio, height, color=colours[rival])
            axis.text(entry.ratio, y, f" {entry.ratio:.2f}", va="center", fontsize=7)
    same = len({row.case for row in rows}) == 1
    labels = [f"batch {row.batch}" if same else f"{row.case} ({row.shape})" for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * max(longest, 1))
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
