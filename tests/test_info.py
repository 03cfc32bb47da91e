"""python -m cnnfast.info."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cnnfast
from cnnfast import info, routing


def _report(*arguments: str, **environment: str) -> str:
    package = Path(cnnfast.__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-m", "cnnfast.info", *arguments],
        cwd=package,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_json() -> None:
    report = json.loads(_report("--json", CNNFAST_CPU_ISA="scalar"))
    assert report["versions"]["cnnfast"] == cnnfast.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert report["cpu"]["isa"] == "scalar"
    assert "CNNFAST_CPU_ISA" in report["cpu"]["reason"]
    assert report["environment"]["CNNFAST_CPU_ISA"] == "scalar"
    assert set(report["ops"]) == set(routing.OPS) == set(cnnfast.functional.__all__)
    assert report["ops"]["conv2d"]["cpu"] == ["bfloat16", "float16", "float32", "float64"]


def test_text_names_what_matters() -> None:
    text = _report()
    chosen = json.loads(torch.ops.cnnfast.cpu_info())["isa"]
    for part in (cnnfast.__version__, torch.__version__, chosen, "threads", *routing.OPS):
        assert part in text


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what a process has loaded")
def test_exactly_one_openmp_runtime() -> None:
    report = json.loads(_report("--json"))
    assert len(report["openmp"]) == 1, report["openmp"]


@pytest.mark.parametrize(
    ("file", "is_openmp"),
    [
        ("libgomp.so.1", True),
        ("libgomp-24e2ab19.so.1.0.0", True),
        ("libiomp5.so", True),
        ("libomp.so.5", True),
        ("libompitrace.so", False),
        ("libtorch_cpu.so", False),
    ],
)
def test_names_of_openmp_runtimes(file: str, is_openmp: bool) -> None:
    assert bool(info._OPENMP.match(file)) == is_openmp


def test_collect_counts_fallbacks() -> None:
    cnnfast.fallbacks(reset=True)
    cnnfast.functional.relu(torch.tensor([1]))
    assert info.collect()["fallbacks"] == {"relu": {"no kernel for torch.int64": 1}}
    cnnfast.fallbacks(reset=True)


def test_peak_wants_threads_of_the_team() -> None:
    assert torch.ops.cnnfast.fma_peak(0.01, 1) > 1e8
    with pytest.raises(RuntimeError, match=r"fma_peak: threads must be at most torch.get_num_threads\(\) = 1, .*=2"):
        torch.ops.cnnfast.fma_peak(0.01, 2)
