"""The emulated tests see bugs: each of tests/cuda_host/mutations.py, seeded in a copy, makes them fail."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cuda_host.mutations import BARRIER, MUTATIONS, TESTS, Mutation

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("csrc", "tests", "cnnfast", "pyproject.toml")
WORKERS = min(4, os.cpu_count() or 1)
TEST_FILES = ("tests/test_cuda_kernels.py", "tests/test_cuda_large.py", "tests/test_cuda_augment.py")
# Of a mutation's tests: it may make a loop endless.
TIMEOUT = 300


def make_copy(copy: Path) -> Path:
    """A copy of the project with the kernels built."""
    for name in COPIED:
        source = ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
    build(copy)
    return copy


def build(copy: Path) -> None:
    command = [sys.executable, "tests/cuda_host/build.py"]
    subprocess.run(command, cwd=copy, env=environment(copy), check=True, capture_output=True)


def environment(copy: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}


def run_tests(copy: Path, chosen: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TEST_FILES]
    command += ["-k", chosen]
    return subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=TIMEOUT)


def is_caught(mutation: Mutation, copy: Path) -> bool:
    """Whether tests that ran failed, crashed or did not end. A mutation that does not compile raises instead."""
    file = copy / "csrc/cuda" / mutation.file
    text = file.read_text()
    file.write_text(mutation.applied_to(text))
    try:
        build(copy)
        result = run_tests(copy, TESTS.get(mutation.file, ""))
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(text)
    return result.returncode < 0 or re.search("^FAILED tests/", result.stdout, re.MULTILINE) is not None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.label)
def test_mutation_applies(mutation: Mutation) -> None:
    text = (ROOT / "csrc/cuda" / mutation.file).read_text()
    assert mutation.applied_to(text) != text


@pytest.mark.parametrize("kernel", sorted(path.name for path in (ROOT / "csrc/cuda/kernels").iterdir()))
def test_every_barrier_is_deleted_once(kernel: str) -> None:
    text = (ROOT / "csrc/cuda/kernels" / kernel).read_text()
    deleted = {m.nth for m in MUTATIONS if m.file == f"kernels/{kernel}" and (m.old, m.new) == (BARRIER, ";")}
    assert deleted == set(range(text.count(BARRIER)))


@pytest.mark.long
def test_every_mutation_is_caught(tmp_path: Path) -> None:
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for worker in range(WORKERS):
        copies.put(make_copy(tmp_path / str(worker)))

    def caught(mutation: Mutation) -> bool:
        copy = copies.get()
        try:
            return is_caught(mutation, copy)
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(caught, MUTATIONS))
    missed = [mutation.label for mutation, seen in zip(MUTATIONS, results, strict=True) if not seen]
    print(f"{len(MUTATIONS) - len(missed)} of {len(MUTATIONS)} seeded bugs caught")
    assert not missed
