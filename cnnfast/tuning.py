"""The fastest of several ways to compute the same, found by trying them: opt-in, by :class:`autotune`.

Here is what does not depend on the op: the switch, the table of choices, the trials. tuned.py has the ways to compute a
convolution, tuning_cache.py the file.
"""

from __future__ import annotations

import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import tuning_cache
from .tuning_cache import Choice, Key, Table

__all__ = ["autotune"]

logger = logging.getLogger("cnnfast")

#: The way that stays unless another takes less than this part of its time: measured again, a smaller gain may be none.
_GAIN = 0.97
#: A way that is so many times slower than the best is not tried any further.
_HOPELESS = 2.0
#: So many choices at most. A program whose sizes never repeat would measure for ever, and gain nothing.
MOST_CHOICES = 4096


class Settings(NamedTuple):
    enabled: bool = False
    cache: Path | None = None
    trials: int = 10
    seconds: float = 0.5


#: Whether calls look for a choice; a copy of the setting, since each call of a convolution asks.
enabled = False
#: The choices of this environment. Read without the lock: a dict's operations are atomic.
table: Table = {}

_settings = Settings()
_tables: dict[str, Table] = {}
# Held while measuring, too: two measurements at one time would disturb each other.
_lock = threading.RLock()


class autotune:
    """Lets the first call of each convolution try every algorithm that takes it, and later calls run the fastest.

    What ``torch.backends.cudnn.benchmark`` is for GPUs, here for the CPU: torch's own op is among the candidates. Like
    ``torch.set_grad_enabled`` it takes effect when called, for all threads, and as a context manager until the block
    ends. Forward, each of our algorithms is tried; backward, our kernels, which share one pass over both gradients,
    against torch's. Convolutions of the same sizes, strides, dtype and number of threads share a choice. Those that are
    fused with a pooling or transposed, and CUDA's, are left as they are.

    The choice, and with it the last bits of a result, depends on what the clock said. Under
    ``torch.use_deterministic_algorithms(True)``, in programs that ``torch.compile`` or ``torch.export`` have made,
    while tracing, and under ``torch.func``'s transforms and dispatch modes it is ignored.

    Args:
        enabled: whether calls are tuned. Choices already made are remembered while they are not.
        cache: a file that keeps the choices for the next process. Those of another version of cnnfast or torch, another
            processor or instruction set are not used; a damaged or foreign file is ignored, with a warning.
        trials: how often each algorithm is run at most, in turn with the others; their medians decide.
        seconds: how long one choice may take at most, but for the first two runs of each.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: trials or seconds that are not positive.

    Example::

        >>> conv = cnnfast.Conv2d(8, 16, 3, padding=1)
        >>> with cnnfast.autotune(trials=3):
        ...     output = conv(torch.randn(1, 8, 14, 14))
        ...     print(sorted(cnnfast.explain(conv, (1, 8, 14, 14)).measured["forward"]))
        ['direct', 'implicit_gemm', 'torch', 'winograd']
    """

    def __init__(
        self,
        enabled: bool = True,
        *,
        cache: str | os.PathLike[str] | None = None,
        trials: int = 10,
        seconds: float = 0.5,
    ) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"autotune: enabled must be bool, but got enabled={enabled!r}")
        if not isinstance(trials, int) or isinstance(trials, bool):
            raise TypeError(f"autotune: trials must be an int, but got trials={trials!r}")
        if trials < 1:
            raise ValueError(f"autotune: trials must be positive, but got trials={trials}")
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
            raise TypeError(f"autotune: seconds must be a number, but got seconds={seconds!r}")
        if not seconds > 0:
            raise ValueError(f"autotune: seconds must be positive, but got seconds={seconds}")
        try:
            path = None if cache is None else Path(cache).absolute()
        except TypeError:
            raise TypeError(f"autotune: cache must be a path or None, but got cache={cache!r}") from None
        self._before, self._settings = _settings, Settings(enabled, path, trials, float(seconds))
        _apply(self._settings)

    def __enter__(self) -> None:
        if _settings is not self._settings:
            self._before = _settings
            _apply(self._settings)

    def __exit__(self, *exception: object) -> None:
        _apply(self._before)


def _apply(settings: Settings) -> None:
    global enabled, table, _settings
    with _lock:
        _settings = settings
        if settings.enabled:
            environment = tuning_cache.environment()
            table = _tables.setdefault(environment, {})
            if settings.cache is not None:
                for key, choice in tuning_cache.read(settings.cache, environment).items():
                    table.setdefault(key, choice)
        enabled = settings.enabled


def state() -> dict[str, Any]:
    """What :mod:`cnnfast.info` tells of it."""
    return {**_settings._asdict(), "cache": _settings.cache and str(_settings.cache), "choices": len(table)}


def measure(key: Key, candidates: Callable[[], Sequence[str]], run: Callable[[str], Any]) -> Choice | None:
    """Tries the candidates, and keeps the choice under ``key``; None where there are too many choices already.

    Args:
        key: what the choice depends on.
        candidates: names the ways, the one that runs without an autotuner first.
        run: runs one of them.
    """
    with _lock:
        choice = table.get(key)  # another thread may have been here
        if choice is None and len(table) < MOST_CHOICES:
            seconds = _try_all(candidates(), run)
            choice = table[key] = Choice(_fastest(seconds), seconds)
            if _settings.cache is not None:
                tuning_cache.write(_settings.cache, tuning_cache.environment(), table)
        return choice


def _try_all(
    names: Sequence[str], run: Callable[[str], Any], clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """The median time of each."""
    clock = clock or time.perf_counter
    end = clock() + _settings.seconds
    tried = []
    for name in names:
        try:
            run(name)  # memory is asked for, and libraries make their plans
            tried.append(name)
        except (MemoryError, RuntimeError):
            if name == names[0]:
                raise
    times: dict[str, list[float]] = {name: [] for name in tried}
    for _ in range(_settings.trials):
        for name in tried:  # in turn: what slows the machine for a while slows all
            start = clock()
            run(name)
            times[name].append(clock() - start)
        best = min(map(min, times.values()))
        tried = [name for name in tried if min(times[name]) <= _HOPELESS * best]
        if len(tried) == 1 or clock() > end:
            break
    return {name: statistics.median(values) for name, values in times.items()}


def _fastest(seconds: dict[str, float]) -> str:
    first = next(iter(seconds))
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < _GAIN * seconds[first] else first


def _after_fork() -> None:
    """A thread that was measuring is not in the child, and would hold the lock for ever."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _from_environment() -> None:
    asked = os.environ.get("CNNFAST_AUTOTUNE", "")
    if asked == "1":
        autotune(cache=os.environ.get("CNNFAST_AUTOTUNE_CACHE") or None)
    elif asked not in ("", "0"):
        logger.warning("CNNFAST_AUTOTUNE must be 0 or 1, but got %s; ignored", asked)


_from_environment()
