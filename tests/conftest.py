"""Options and fixtures of all Python tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cnnfast


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device whose kernels are tested: cpu (default), cuda, cuda:1")


def pytest_report_header() -> str:
    return f"cnnfast {cnnfast.__version__} of {Path(cnnfast.__file__).parent}, torch {torch.__version__}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long tests out, unless -m or a test's own name asks for them."""
    if "long" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in set(long)]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors are done soonest by one thread; that more change no bits is for test_determinism.py to show."""
    torch.set_num_threads(1)


def _cpu_isas() -> list[str]:
    return json.loads(torch.ops.cnnfast.cpu_info())["supported"]


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return chosen


@pytest.fixture(params=_cpu_isas())
def isa(request: pytest.FixtureRequest, device: torch.device) -> Iterator[str]:
    """Runs the test on each instruction set that was built and that this processor has."""
    if device.type != "cpu":
        pytest.skip(f"instruction sets are the CPU's, but got --device={device}")
    chosen = json.loads(torch.ops.cnnfast.cpu_info())["isa"]
    assert torch.ops.cnnfast.set_cpu_isa(request.param)
    yield request.param
    assert torch.ops.cnnfast.set_cpu_isa(chosen)


@pytest.fixture
def direct_sums(device: torch.device) -> Iterator[None]:
    """Without Winograd, whose thirds are not exact and whose error has a bound of its own (test_winograd.py)."""
    if device.type != "cpu":
        yield
        return
    before = torch.ops.cnnfast.set_winograd(False)
    yield
    torch.ops.cnnfast.set_winograd(before)
