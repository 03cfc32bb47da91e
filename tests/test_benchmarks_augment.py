"""The suite `augment`: ours is right by its own check, what is missing is said, and a wrong step is seen."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from benchmarks import augment
from benchmarks.case import OURS, Case, measure
from benchmarks.suites import Options
from benchmarks.timing import Budget

BUDGET = Budget(seconds=0.01, fewest=1, most=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "BATCHES", {"cpu": ((4, 1, 28), (2, 3, 40))})


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *args: Any) -> Any:
        if name.split(".")[0] in ("torchvision", "kornia"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", missing)


def test_ours_is_measured_and_missing_rivals_are_named(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    cases = list(augment.cases(Options()))
    assert all(isinstance(case, Case) for case in cases)
    rows = [measure(case, BUDGET) for case in cases if isinstance(case, Case)]
    assert [row.section for row in rows] == [*list(augment.PIPELINES) * 2, "Beside a training step"]
    assert [row.shape for row in rows] == ["4x1x28x28"] * 2 + ["2x3x40x40"] * 2 + ["4x1x28x28"]
    for row in rows:
        assert row.ours.name == OURS and row.ours.measured, row.ours
    for row in rows[:-1]:
        statuses = {entry.name: (entry.status, entry.reason) for entry in row.entries[1:]}
        assert {status for status, _ in statuses.values()} == {"not installed"}
        assert "no package kornia" in statuses["kornia"][1]
    assert rows[-1].entries[1].measured and rows[-1].entries[1].ratio is not None


def test_quick_is_small_images_alone(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    shapes = [case.shape for case in augment.cases(Options(quick=True)) if isinstance(case, Case)]
    assert shapes == ["4x1x28x28"] * 3


@pytest.mark.parametrize("rival", list(augment.RIVALS))
def test_rivals_compute_the_same(rival: str, small: None) -> None:
    case = next(iter(augment.cases(Options())))
    assert isinstance(case, Case)
    case.contestants = {OURS: case.contestants[OURS], rival: case.contestants[rival]}
    entry = next(entry for entry in measure(case, BUDGET).entries if entry.name == rival)
    if entry.status == "not installed":
        pytest.skip(entry.reason)
    assert entry.measured, entry


def test_a_wrong_step_is_seen(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def turned_back(settings: augment.Settings) -> dict[str, Any]:
        steps = ours(settings)
        steps["rotation"] = augment.augment.RandomRotation([-angle for angle in settings.degrees[::-1]])
        return steps

    ours, pipeline = augment.RIVALS[OURS]
    monkeypatch.setattr(augment, "RIVALS", {OURS: (turned_back, pipeline)})
    case = next(iter(augment.cases(Options())))
    assert isinstance(case, Case)
    assert measure(case, BUDGET).ours.status == "wrong"
