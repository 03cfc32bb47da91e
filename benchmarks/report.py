"""Tables of a result: for the terminal (with rich, if it is there), as Markdown, and into README.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .results import Entry, Result, Row, Standing

__all__ = ["BEGIN", "END", "into_readme", "markdown", "show"]

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
SLOWER = "slower"


def _figure(value: float) -> str:
    """Three digits: 0.0123, 1.23, 12.3, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(entry: Entry | None) -> str:
    """A rival's cell: figure and ratio, or why there is none."""
    if entry is None:
        return ""
    if not entry.measured:
        error = f" (max error {entry.error:.2g})" if entry.status == "wrong" and entry.error is not None else ""
        return "-" if entry.status == "skipped" else entry.status + error
    if entry.ratio is None:
        return _figure(entry.median)
    return f"{_figure(entry.median)} ({entry.ratio:.2f}x{', ' + SLOWER if entry.loses else ''})"


def _error(row: Row) -> str:
    """Our error and, in brackets, how many times torch's smaller one it is."""
    theirs = row.torchs_error
    if row.ours.error is None or theirs is None:
        return ""
    return f"{row.ours.error:.1e}" + (f" ({row.ours.error / theirs:.2f}x)" if theirs else "")


def _row(row: Row, rivals: list[str]) -> list[str]:
    ours, best = row.ours, row.torchs_best
    # What does no arithmetic worth counting moves memory.
    rate = row.gbyte / (ours.median / 1e3) if row.gbyte and ours.median and row.gflop is None else None
    return [
        row.case + (" *" if row.loses else ""),
        row.shape,
        f"{_figure(ours.median)}" if ours.measured else _cell(ours),
        f"{_figure(ours.q3 - ours.q1)}" if ours.measured and row.unit == "ms" else "",
        _figure(ours.block_median) if ours.block_median is not None else "",
        _figure(ours.gflops) if ours.gflops is not None else "",
        f"{100 * ours.peak_share:.0f} %" if ours.peak_share is not None else "",
        _figure(rate) if rate is not None else "",
        *(_cell(row.entry(rival)) for rival in rivals),
        f"{best.ratio:.2f}x" if best is not None else "",
        _error(row),
    ]


def tables(result: Result) -> Iterator[tuple[str, list[str], list[list[str]], list[str]]]:
    """(title, header, rows, lines below) of each section, in the order in which the suite made them."""
    sections: dict[tuple[str, str], list[Row]] = {}
    for row in result.rows:
        sections.setdefault((row.section, row.unit), []).append(row)
    for (section, unit), rows in sections.items():
        rivals = list(dict.fromkeys(entry.name for row in rows for entry in row.entries[1:]))
        header = ["case", "input", f"cnnfast, {unit}", "IQR", "in blocks", "GFLOP/s", "of peak", "GB/s", *rivals]
        header += ["torch's best", "error (of torch's)"]
        # A case's batches one below the other, cases in the suite's order.
        order = list(dict.fromkeys(row.case for row in rows))
        body = [_row(row, rivals) for row in sorted(rows, key=lambda row: order.index(row.case))]
        used = [i for i in range(len(header)) if i < 3 or any(line[i] for line in body)]
        below = [_line(standing) for standing in result.standings() if standing.section == section]
        yield section, [header[i] for i in used], [[line[i] for i in used] for line in body], below


def _line(standing: Standing) -> str:
    return (
        f"{standing.mode}, {standing.layout}: {standing.geometric_mean:.2f}x of torch's best layout (geometric mean of "
        f"{standing.rows}), least {standing.least:.2f}x: {standing.least_case}"
    )


def summary(result: Result) -> list[str]:
    """Where and how the figures were taken, in a few sentences."""
    about = result.metadata
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    threads = f"{about['threads']} thread{'s' if about['threads'] != 1 else ''}"
    peak = about["peak_gflops"]
    gpu = about.get("gpu")
    machine = f"{about['cpu']}, {about['cores']} cores, {threads}, {about['isa']}"
    what = f"Measured FMA peak of {threads}"
    if gpu:
        machine = (
            f"{gpu['name']}, copies at {_figure(gpu['copy_gb_per_s'])} GB/s, convolutions of float32 as "
            f"{gpu['conv_fp32_precision']}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']} (benchmark=True)"
        )
        what = "Rate of torch's own product of large matrices at that precision"
    notes = [
        f"{about['date'][:10]}, commit {about['commit']}: {machine}, {about['dtype']}. {versions}.",
        f"{what}: {_figure(peak['start'])} GFLOP/s before the run, {_figure(peak['end'])} after it; shares are of the "
        "larger.",
        "Rivals: their time and, in brackets, how many times cnnfast's it is (per-round ratios' median; for "
        f"onnxruntime and OpenVINO the ratio of medians). `{SLOWER}` and * mark what cnnfast loses; GFLOP/s count "
        "dense work; a dash was skipped.",
    ]
    if any(row.ours.block_median is not None for row in result.rows):
        notes.append(
            "onnxruntime and OpenVINO are timed in blocks of one's own calls, and compared with cnnfast's median in "
            "such blocks."
        )
    if any(row.layout for row in result.rows):
        notes.append(
            "torch's best is the faster of its two layouts in each row; the error is the largest against float64, of "
            "the largest value, beside the smaller of torch's."
        )
    if copy := about.get("copy_gb_per_s"):
        notes.append(f"A copy on as many threads reads and writes {_figure(copy)} GB/s.")
    if about["quick"]:
        notes.append("Quick run: few cases and rounds, no torch.compile.")
    share = min(about["processor_share"].values())
    if share < 0.9 or min(peak.values()) < 0.9 * max(peak.values()):
        notes.append(f"The machine was busy (the run got {share:.0%} of its processors' time): times are unreliable.")
    if len(runtimes := about["openmp_runtimes"] or []) > 1:
        notes.append(f"More than one OpenMP runtime was loaded ({', '.join(runtimes)}): everyone may be slower for it.")
    if about["fallbacks"]:
        notes.append(f"Some of cnnfast's calls went to torch's own op: {about['fallbacks']}.")
    reasons = dict.fromkeys(
        f"{entry.name}, {row.case}, batch {row.batch}: {entry.status}, {entry.reason}."
        for row in result.rows
        for entry in row.entries
        if entry.status in ("wrong", "failed")
    )
    absent = dict.fromkeys(
        f"{entry.name}: {entry.status} ({entry.reason})."
        for row in result.rows
        for entry in row.entries
        if entry.status in ("not installed", "skipped")
    )
    return notes + list(reasons) + list(absent)


def show(result: Result) -> None:
    """Prints every table, then the summary."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for title, header, body, below in tables(result):
            print("\n".join([f"\n{title}", _aligned([header, *body]), *below]))
        print("\n" + "\n".join(summary(result)))
        return
    console = Console()
    # A pipe has no width of its own: rich would fold every cell into 80 columns.
    if not console.is_terminal:
        console = Console(width=200)
    for title, header, body, below in tables(result):
        table = Table(*header, title=title, title_justify="left")
        for line in body:
            style = "red" if line[0].endswith(" *") else None
            table.add_row(*line, style=style)
        console.print(table)
        if below:
            console.print("\n".join(below), markup=False, highlight=False)
    console.print("\n".join(summary(result)), markup=False, highlight=False)


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def markdown(result: Result, plot: str | None = None) -> str:
    """The tables and the summary as Markdown; ``plot`` is the address of a picture to show above them."""
    parts = [f"![Speed-up over each rival]({plot})"] if plot else []
    for title, header, body, below in tables(result):
        rules = ["---" if i < 2 else "---:" for i in range(len(header))]
        lines = [
            "| " + " | ".join(cell.replace("|", r"\|").replace("*", r"\*") for cell in line) + " |" for line in body
        ]
        parts.append("\n".join([f"**{title}**", "", "| " + " | ".join(header) + " |", f"|{'|'.join(rules)}|", *lines]))
        if below:
            parts.append("\n".join(f"- {line}" for line in below))
    parts.append("\n".join(f"- {note}" for note in summary(result)).replace("and *", r"and \*"))
    return "\n\n".join(parts) + "\n"


def into_readme(path: Path, text: str) -> None:
    """Replaces what stands between the two markers.

    Raises:
        ValueError: the file does not have each marker exactly once, in order.
    """
    readme = path.read_text()
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"{path}: must hold {BEGIN} and, after it, {END}, once each")
    head, tail = readme[: readme.index(BEGIN)], readme[readme.index(END) :]
    path.write_text(f"{head}{BEGIN}\n{text}{tail}")
