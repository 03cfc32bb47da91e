"""The emulated tests see bugs: each of tests/cuda_host/mutations.py, seeded in a copy, makes them fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_host.mutations import MUTATIONS, TESTS, Mutation

ROOT = Path(__file__).resolve().parents[1]
# A mutation may make a loop endless.
TIMEOUT = 300
COPIED = ("csrc", "tests", "cnnfast", "pyproject.toml")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the kernels built, whose tests pass."""
    copy = tmp_path_factory.mktemp("mutations")
    for name in COPIED:
        source = ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
    assert run_tests(copy).returncode == 0
    return copy


def run_tests(copy: Path, chosen: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/test_cuda_kernels.py"]
    command += ["-k", chosen]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.mark.long
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.label)
def test_mutation_is_caught(mutation: Mutation, copy: Path) -> None:
    file = copy / "csrc/cuda" / mutation.file
    text = file.read_text()
    file.write_text(mutation.applied_to(text))
    try:
        result = run_tests(copy, TESTS.get(mutation.file, ""))
    except subprocess.TimeoutExpired:
        return
    finally:
        file.write_text(text)
    # Tests ran and failed, or crashed: a mutation that does not compile proves nothing.
    assert result.returncode != 0, f"not caught: {mutation.label}"
    assert result.returncode < 0 or "FAILED" in result.stdout, result.stdout[-2000:]
