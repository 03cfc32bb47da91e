"""What the tests of the autotuner share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import cnnfast
from cnnfast import tuned, tuning, tuning_cache

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
BACKWARD = (tuned.PLANNED, tuned.TORCH, tuned.TORCH_FOR_INPUT, tuned.TORCH_FOR_WEIGHT)
OWN = ("winograd", "direct", "depthwise", "implicit_gemm")


@pytest.fixture
def fresh(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No choices, no refused files, and the switch as it was."""
    if device.type != "cpu":
        pytest.skip("autotune is the CPU's")
    for name in ("_tables", "table"):
        monkeypatch.setattr(tuning, name, {})
    monkeypatch.setattr(tuning_cache, "_refused", set())
    with cnnfast.autotune(False):
        yield


def choosing(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, seen: list[str] | None = None, seconds: float = 1.0
) -> None:
    """Lets an algorithm seem the fastest wherever it is a candidate. The candidates still run."""

    def times(names: Any, run: Callable[[str], Any]) -> dict[str, float]:
        for name in names:
            run(name)
        if seen is not None:
            seen.extend(names)
        return {name: seconds if name == algorithm else 2 * seconds for name in names}

    monkeypatch.setattr(tuning, "_try_all", times)


def choices() -> list[str]:
    return [choice.algorithm for choice in tuning.table.values()]


def conv_and_input() -> tuple[cnnfast.Conv2d, Tensor]:
    torch.manual_seed(0)
    return cnnfast.Conv2d(16, 24, 3, padding=1), torch.randn(2, 16, 10, 11)
