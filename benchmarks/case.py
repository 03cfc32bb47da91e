"""One case: everyone computes it, is compared with a float64 reference, and only then timed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cnnfast.precision import allow_tf32

from .results import Entry, Row
from .timing import (
    Budget,
    Contestant,
    Stopwatch,
    in_blocks,
    ratio_of_medians,
    ratio_of_rounds,
    spread,
    time_contestants,
)

__all__ = ["OURS", "Case", "NotInstalled", "Skipped", "discrepancy", "measure"]

OURS = "cnnfast"

# Relative L2 distance from the reference up to which a result counts as right. A gradient is allowed more: where two
# values of a pooling window are equal but for rounding, float32 and float64 may choose different winners, which moves
# a whole gradient to its neighbour (5e-4 of a weight's gradient was seen); no such step exists in outputs.
OUTPUT_LIMIT = 1e-4
GRADIENT_LIMIT = 1e-2
# The same where products are of tf32, whose operands are rounded to 2^-11: near-equal values are 2^13 times as many.
TF32_OUTPUT_LIMIT = 3e-3
TF32_GRADIENT_LIMIT = 5e-2


def limits(device: str) -> tuple[float, float]:
    """Those of outputs and gradients on a device, by torch's switch as it is now."""
    tf32 = device == "cuda" and allow_tf32()
    return (TF32_OUTPUT_LIMIT, TF32_GRADIENT_LIMIT) if tf32 else (OUTPUT_LIMIT, GRADIENT_LIMIT)


class NotInstalled(Exception):
    """A rival's package or compiler is absent."""


class Skipped(Exception):
    """A rival does not take part in this case; the message says why."""


@dataclasses.dataclass
class Case:
    """What ``measure`` needs to make a row.

    Args:
        contestants: name to a function that sets the contestant up, ours first. It may raise ``NotInstalled`` or
            ``Skipped``; any other exception of a rival is shown as "failed".
        reference: the expected outputs, by name, in float64; names that start with "grad" are gradients.
        gflop: dense work of one call in 1e9 operations, or None where the count says nothing.
        output_limit, gradient_limit: relative distance from the reference up to which a result counts as right.
        gbyte, mode, layout: the row's.
    """

    section: str
    name: str
    shape: str
    batch: int
    gflop: float | None
    contestants: Mapping[str, Callable[[], Contestant]]
    reference: Callable[[], dict[str, Tensor]]
    output_limit: float = OUTPUT_LIMIT
    gradient_limit: float = GRADIENT_LIMIT
    gbyte: float | None = None
    mode: str = ""
    layout: str = ""

    def row(self) -> Row:
        """The case's row, still without entries."""
        kept = {"gflop": self.gflop, "gbyte": self.gbyte, "mode": self.mode, "layout": self.layout}
        return Row(self.section, self.name, self.shape, self.batch, "ms", **kept)


def discrepancy(
    outputs: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    output_limit: float = OUTPUT_LIMIT,
    gradient_limit: float = GRADIENT_LIMIT,
) -> tuple[float, str]:
    """The largest error relative to the reference's largest value, and what is wrong ("" if nothing is)."""
    if outputs.keys() != reference.keys():
        return math.inf, f"returns {sorted(outputs)} instead of {sorted(reference)}"
    largest, wrong = 0.0, []
    for name, expected in reference.items():
        actual, expected = (tensor.detach().double().cpu() for tensor in (outputs[name], expected))
        if actual.shape != expected.shape:
            return math.inf, f"{name} has shape {list(actual.shape)} instead of {list(expected.shape)}"
        difference = actual - expected
        error = float(difference.abs().max() / expected.abs().max().clamp_min(1e-30)) if expected.numel() else 0.0
        distance = float(difference.norm() / expected.norm().clamp_min(1e-30)) if expected.numel() else 0.0
        # NaN compares false: written so that it counts as wrong.
        if not distance <= (gradient_limit if name.startswith("grad") else output_limit):
            wrong.append(f"{name}: max error {error:.2g}")
        largest = max(largest, error) if math.isfinite(error) else math.inf
    return largest, "; ".join(wrong)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}"[:200] if text else type(error).__name__


def _prepare(
    name: str, setup: Callable[[], Contestant], reference: Mapping[str, Tensor], limits: tuple[float, float]
) -> tuple[Entry, Contestant | None]:
    """Sets a contestant up and checks it; without a contestant the entry says why it is not timed."""
    try:
        contestant = setup()
        outputs = contestant.outputs()
    except NotInstalled as error:
        return Entry(name, "not installed", str(error)), None
    except Skipped as error:
        return Entry(name, "skipped", str(error)), None
    except Exception as error:  # Whatever a rival raises must not end the run; the row shows it.
        return Entry(name, "failed", _first_line(error)), None
    distance, wrong = discrepancy(outputs, reference, *limits)
    # JSON has no infinity.
    entry = Entry(name, error=distance if math.isfinite(distance) else None)
    if wrong:
        entry.status, entry.reason = "wrong", wrong
        return entry, None
    return entry, contestant


def measure(case: Case, budget: Budget, stopwatch: Stopwatch | None = None) -> Row:
    """Checks and times a case. cnnfast is held to the same rule: if it is wrong, the row says so and has no time."""
    row = case.row()
    try:
        reference = case.reference()
    except torch.OutOfMemoryError as error:  # float64 of the largest batches: the rows before it are not lost for it
        row.entries = [Entry(name, "failed", f"reference: {_first_line(error)}") for name in case.contestants]
        return row
    prepared = [
        _prepare(name, setup, reference, (case.output_limit, case.gradient_limit))
        for name, setup in case.contestants.items()
    ]
    row.entries = [entry for entry, _ in prepared]
    contestants = [contestant for _, contestant in prepared if contestant is not None]
    times = time_contestants(contestants, budget, stopwatch, row.ours.name) if contestants else {}
    own_pool = {contestant.name for contestant in contestants if contestant.own_threads}
    ours, ours_in_blocks = (times.get(name, ([], 0))[0] for name in (row.ours.name, in_blocks(row.ours.name)))
    if ours_in_blocks:
        row.ours.block_median = 1e3 * spread(ours_in_blocks).median
    for entry in row.entries:
        if entry.name not in times:
            continue
        seconds, entry.calls = times[entry.name]
        entry.samples = len(seconds)
        milliseconds = spread([1e3 * s for s in seconds])
        entry.median, entry.q1, entry.q3 = dataclasses.astuple(milliseconds)
        if case.gflop is not None:
            entry.gflops = case.gflop / (milliseconds.median / 1e3)
        if entry is not row.ours and ours:
            entry.paired = entry.name not in own_pool
            entry.ratio = ratio_of_rounds(seconds, ours) if entry.paired else ratio_of_medians(seconds, ours_in_blocks)
    return row
