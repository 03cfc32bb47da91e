"""The benchmarks on a GPU, as far as they can be tested without one: times, rivals, limits, what does not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_benchmarks import FEW, FakeMachine, case_of_fakes
from torch import Tensor

import benchmarks.__main__ as command
from benchmarks import case as case_module, gpu
from benchmarks.case import OURS, discrepancy, measure
from benchmarks.rivals import RIVALS
from benchmarks.timing import Stopwatch, time_contestants


def test_gpu_times_are_the_events_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What overwrites the cache lies outside each pair of events; a sample is the mean of its calls."""
    machine = FakeMachine()
    cleared = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = machine.now

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    class Cache:
        def zero_(self) -> None:
            machine.now += 0.5
            cleared.append(1)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    watch = gpu.GpuStopwatch.__new__(gpu.GpuStopwatch)
    Stopwatch.__init__(watch, synchronize=torch.cuda.synchronize, sleep=machine.sleep)
    watch._cache = Cache()  # type: ignore[assignment]
    contestant = machine.contestant("a", 2e-3)
    assert watch.sample(contestant, 3) == pytest.approx(2e-3)
    assert len(cleared) == 3
    assert watch.calls_per_sample(contestant) == 1
    samples, calls = time_contestants([contestant], FEW, watch)["a"]
    assert calls == 1
    assert samples == pytest.approx([2e-3] * 4)


def test_each_device_has_its_rivals() -> None:
    parser = command._parser()
    rivals = command._options(parser.parse_args(["--device", "cpu"]), parser).rivals
    assert "cuda_graphs" not in rivals
    assert {"eager", "channels_last", "compile", "onnxruntime", "openvino"} == set(rivals)
    assert {name for name, rival in RIVALS.items() if "cuda" in rival.devices} == {
        "eager", "channels_last", "compile", "cuda_graphs"
    }  # fmt: skip


def test_limits_follow_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_module, "allow_tf32", lambda: True)
    assert case_module.limits("cpu") == (case_module.OUTPUT_LIMIT, case_module.GRADIENT_LIMIT)
    assert case_module.limits("cuda") == (case_module.TF32_OUTPUT_LIMIT, case_module.TF32_GRADIENT_LIMIT)
    near = {"output": torch.tensor([1.0, 1.001])}
    exact = {"output": torch.tensor([1.0, 1.0])}
    assert discrepancy(near, exact)[1] != ""
    assert discrepancy(near, exact, *case_module.limits("cuda"))[1] == ""


def test_a_reference_that_does_not_fit_is_shown() -> None:
    def reference() -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    machine = FakeMachine()
    case = dataclasses.replace(case_of_fakes(machine, machine.contestant(OURS, 1e-3)), reference=reference)
    row = measure(case, FEW, machine.stopwatch())
    assert [(entry.status, entry.reason) for entry in row.entries] == [
        ("failed", "reference: OutOfMemoryError: CUDA out of memory")
    ]
