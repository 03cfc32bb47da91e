"""What a run leaves behind: rows of entries and metadata, as strict JSON with a schema that is checked."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

__all__ = [
    "CHANNELS_LAST",
    "EAGER",
    "MEASURED",
    "SCHEMA",
    "STATUSES",
    "Entry",
    "Result",
    "Row",
    "Standing",
    "load",
    "save",
]

SCHEMA = 1
MEASURED = "measured"
STATUSES = (MEASURED, "wrong", "not installed", "skipped", "failed")
UNITS = ("ms", "bytes per image")
# Torch in its two layouts, as the tables name it.
EAGER, CHANNELS_LAST = "torch eager", "torch channels_last"


@dataclasses.dataclass
class Entry:
    """One contestant in one row; every figure is None unless ``status`` is "measured".

    Args:
        name: "cnnfast" or the rival's name.
        status: one of ``STATUSES``; ``reason`` says more wherever it is not "measured".
        median, q1, q3: in the row's unit, over ``samples`` samples of ``calls`` calls each.
        error: largest difference from the float64 reference, relative to its largest value; kept for wrong ones too.
        ratio: this entry's figure over cnnfast's; above 1 cnnfast is better. None for cnnfast itself.
        paired: whether ``ratio`` is the median of per-round ratios, else the ratio of the medians in blocks.
        block_median: cnnfast's median in blocks of its own calls, where a rival was timed in blocks.
        gflops: 1e9 dense-equivalent floating point operations per second; peak_share: of the measured FMA peak.
    """

    name: str
    status: str = MEASURED
    reason: str = ""
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    samples: int = 0
    calls: int = 0
    error: float | None = None
    ratio: float | None = None
    paired: bool | None = None
    block_median: float | None = None
    gflops: float | None = None
    peak_share: float | None = None

    @property
    def measured(self) -> bool:
        return self.status == MEASURED

    @property
    def loses(self) -> bool:
        """Whether cnnfast loses to this rival, by more than the table's two decimals hide."""
        return self.ratio is not None and round(self.ratio, 2) < 1


@dataclasses.dataclass
class Row:
    """One case; ``entries[0]`` is cnnfast.

    Args:
        gflop: dense work of one call in 1e9 operations, or None.
        gbyte: 1e9 bytes of the tensors that one call must read or write, each once, or None.
        mode: what is computed.
        layout: ours, in the suites whose rows have torch in both layouts against ours in one; "" elsewhere.
    """

    section: str
    case: str
    shape: str
    batch: int
    unit: str = "ms"
    gflop: float | None = None
    entries: list[Entry] = dataclasses.field(default_factory=list)
    gbyte: float | None = None
    mode: str = ""
    layout: str = ""

    @property
    def ours(self) -> Entry:
        return self.entries[0]

    @property
    def loses(self) -> bool:
        return any(entry.loses for entry in self.entries)

    def entry(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def torchs_best(self) -> Entry | None:
        """Torch in the layout that was faster, in rows that know ours."""
        timed = [e for e in self.entries if e.name in (EAGER, CHANNELS_LAST) and e.ratio is not None]
        return min(timed, key=lambda entry: entry.ratio) if timed and self.layout else None

    @property
    def torchs_error(self) -> float | None:
        """The smaller of the errors of torch's two layouts, in rows that know ours."""
        errors = [e.error for e in self.entries if e.name in (EAGER, CHANNELS_LAST) and e.measured]
        return min((error for error in errors if error is not None), default=None) if self.layout else None


@dataclasses.dataclass
class Standing:
    """Where a section's rows of one mode and layout stand: torch's time, in its best layout of each row, over ours."""

    section: str
    mode: str
    layout: str
    rows: int
    geometric_mean: float
    least: float
    least_case: str


@dataclasses.dataclass
class Result:
    """A whole run. ``metadata`` is what benchmarks/environment.py collects."""

    metadata: dict[str, Any]
    rows: list[Row] = dataclasses.field(default_factory=list)

    def set_peak(self, flops: float | None) -> None:
        """Fills in every share of the peak, which is known only when the run has ended."""
        for entry in (entry for row in self.rows for entry in row.entries):
            if flops and entry.gflops is not None:
                entry.peak_share = entry.gflops * 1e9 / flops

    def standings(self) -> list[Standing]:
        """One for each section, mode and layout of ours, in the rows' order; rows without torch's time do not count."""
        groups: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in self.rows:
            if (best := row.torchs_best) is not None and best.ratio is not None:
                ratios = groups.setdefault((row.section, row.mode, row.layout), {})
                ratios[f"{row.case} ({row.shape})"] = best.ratio
        return [
            Standing(
                *key,
                len(ratios),
                statistics.geometric_mean(ratios.values()),
                min(ratios.values()),
                min(ratios, key=ratios.__getitem__),
            )
            for key, ratios in groups.items()
        ]

    @property
    def own_failures(self) -> list[str]:
        """Cases in which cnnfast itself is wrong or fails: the run must not pass for a success."""
        return [f"{row.case}, batch {row.batch}: {row.ours.status}" for row in self.rows if not row.ours.measured]


REQUIRED_METADATA = (
    "suite", "quick", "date", "commit", "versions", "cpu", "cores", "threads", "device", "isa", "dtype",
    "openmp_runtimes", "peak_gflops", "rivals", "processor_share", "fallbacks",
)  # fmt: skip


def problems(result: Result) -> list[str]:
    """Every breach of the schema, in words; none for a good result."""
    found = [f"metadata lacks {key}" for key in REQUIRED_METADATA if key not in result.metadata]
    for row in result.rows:
        where = f"{row.section} / {row.case} / batch {row.batch}"
        if not row.entries or not row.ours.name.startswith("cnnfast"):
            found.append(f"{where}: the first entry is not cnnfast")
        if row.unit not in UNITS:
            found.append(f"{where}: unknown unit {row.unit!r}")
        for entry in row.entries:
            figures = (entry.median, entry.q1, entry.q3)
            if entry.status not in STATUSES:
                found.append(f"{where}: {entry.name}: unknown status {entry.status!r}")
            if entry.measured and not all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in figures):
                found.append(f"{where}: {entry.name}: measured, but median and quartiles are {figures}")
            if not entry.measured and any(v is not None for v in (*figures, entry.ratio)):
                found.append(f"{where}: {entry.name}: {entry.status}, but carries a figure")
            if not entry.measured and not entry.reason:
                found.append(f"{where}: {entry.name}: {entry.status}, but does not say why")
    return found


def _refuse(result: Result, what: str) -> None:
    if breaches := problems(result):
        raise ValueError(f"{what}: not a result of these benchmarks: " + "; ".join(breaches[:5]))


def save(result: Result, path: Path) -> None:
    """Writes strict JSON (no NaN). Raises ValueError for a result that breaks the schema."""
    _refuse(result, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The standings follow from the rows; they are there for who reads the file without this module.
    standings = [dataclasses.asdict(standing) for standing in result.standings()]
    document = {"schema": SCHEMA, **dataclasses.asdict(result), "standings": standings}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Result:
    """Reads what ``save`` wrote. Raises ValueError, naming the file, for anything else."""
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}, but got schema={document['schema']}")
        rows = [Row(**{**row, "entries": [Entry(**entry) for entry in row["entries"]]}) for row in document["rows"]]
        result = Result(document["metadata"], rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a result of these benchmarks: {error}") from error
    _refuse(result, str(path))
    return result
