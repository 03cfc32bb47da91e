"""Interleaved timing: every contestant once per round, so that drift of the machine meets them all alike."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "Budget",
    "Contestant",
    "Spread",
    "in_blocks",
    "ratio_of_medians",
    "ratio_of_rounds",
    "spread",
    "time_contestants",
]

# A sample shorter than this is made of several calls: one reading of the clock costs about 0.1 us.
SHORTEST_SAMPLE = 200e-6
# A thread pool spins for some milliseconds after its last task (libgomp's and onnxruntime's alike) and slows whoever
# runs next; no one is timed within this many seconds of another's pool.
PAUSE = 0.05
# Rounds and blocks take turns this many times, so that a slow minute of the machine meets both.
SEGMENTS = 3
DROPPED_CALLS = 3


@dataclasses.dataclass
class Contestant:
    """Someone to be timed.

    Args:
        name: as shown in the table.
        call: what is timed.
        outputs: what it computes, by name, for the comparison with the reference; called before any timing.
        own_threads: it keeps a thread pool of its own, so it is timed in blocks of calls with a pause around them.
        before: called before each sample, outside the timed part.
    """

    name: str
    call: Callable[[], Any]
    outputs: Callable[[], dict[str, Any]]
    own_threads: bool = False
    before: Callable[[], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long one case may take: about ``seconds``, but at least ``fewest`` and at most ``most`` rounds."""

    seconds: float = 1.5
    fewest: int = 7
    most: int = 200


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    @property
    def iqr(self) -> float:
        return self.q3 - self.q1


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of at least one sample (quartiles interpolate linearly, as numpy's do by default)."""
    if not samples:
        raise ValueError("spread: needs at least one sample, but got none")
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, q1, q3)


def ratio_of_rounds(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median over rounds of their time over ours, both of the same round."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))


def ratio_of_medians(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """For samples that were not taken in the same rounds."""
    return statistics.median(theirs) / statistics.median(ours)


class Stopwatch:
    """Times samples. ``synchronize`` waits for the device; ``clock`` and ``sleep`` can be replaced by a test."""

    def __init__(
        self,
        synchronize: Callable[[], Any] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.synchronize, self.clock, self.sleep = synchronize, clock, sleep

    def sample(self, contestant: Contestant, calls: int = 1) -> float:
        """Seconds per call over `calls` consecutive calls."""
        if contestant.before is not None:
            contestant.before()
        call = contestant.call
        self.synchronize()
        start = self.clock()
        for _ in range(calls):
            call()
        self.synchronize()
        return (self.clock() - start) / calls

    def calls_per_sample(self, contestant: Contestant) -> int:
        """Warms up, then says how many calls a sample of decent length takes."""
        self.sample(contestant)
        shortest = self.sample(contestant)
        if shortest < 10 * SHORTEST_SAMPLE:  # else one call is enough, however disturbed this one was
            shortest = min(shortest, *(self.sample(contestant) for _ in range(2)))
        return max(1, math.ceil(SHORTEST_SAMPLE / max(shortest, 1e-9)))


def in_blocks(name: str) -> str:
    """What the samples are named that a contestant of the rounds has from blocks."""
    return f"{name}, in blocks"


def time_contestants(
    contestants: Sequence[Contestant], budget: Budget, stopwatch: Stopwatch | None = None, ours: str = ""
) -> dict[str, tuple[list[float], int]]:
    """Seconds per call, sample by sample, and calls per sample, by contestant's name.

    Contestants on the same thread pool get exactly the same number of samples: the i-th of each are from one round.
    Where others are timed in blocks, so is ``ours``, before each of theirs: :func:`in_blocks` names these samples.
    """
    watch = stopwatch or Stopwatch()
    together = [c for c in contestants if not c.own_threads]
    apart = [c for c in contestants if c.own_threads]
    compared = [c for c in together if c.name == ours and apart]
    samples: dict[str, list[float]] = {c.name: [] for c in contestants} | {in_blocks(c.name): [] for c in compared}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        calls: dict[str, int] = {}
        for group in (together, apart):
            calls |= {c.name: watch.calls_per_sample(c) for c in group}
            watch.sleep(PAUSE)
        calls |= {in_blocks(c.name): calls[c.name] for c in compared}
        # A round's length decides how many fit, after one that only warms the caches in the order of the rounds.
        for _ in range(2):
            round_time = sum(watch.sample(c, calls[c.name]) * calls[c.name] for c in together)
        timed = len(contestants) + len(compared)
        share = len(together) / max(1, timed)
        rounds = max(budget.fewest, min(budget.most, int(budget.seconds * share / max(round_time, 1e-9))))
        for segment in range(SEGMENTS):
            for _ in range(rounds * (segment + 1) // SEGMENTS - rounds * segment // SEGMENTS):
                for contestant in together:
                    samples[contestant.name].append(watch.sample(contestant, calls[contestant.name]))
            for contestant in compared + apart:
                name = in_blocks(contestant.name) if contestant in compared else contestant.name
                samples[name] += _block(watch, contestant, calls[name], budget, timed)
    finally:
        if collecting:
            gc.enable()
    return {name: (values, calls[name]) for name, values in samples.items()}


def _block(watch: Stopwatch, contestant: Contestant, calls: int, budget: Budget, timed: int) -> list[float]:
    """One block of someone's calls, its first ones dropped."""
    watch.sleep(PAUSE)
    for _ in range(DROPPED_CALLS):
        warm = watch.sample(contestant, calls) * calls
    fits = int(budget.seconds / timed / SEGMENTS / max(warm, 1e-9))
    count = max(-(-budget.fewest // SEGMENTS), min(-(-budget.most // SEGMENTS), fits))
    block = [watch.sample(contestant, calls) for _ in range(count)]
    watch.sleep(PAUSE)
    return block
