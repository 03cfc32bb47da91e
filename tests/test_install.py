"""What the last lines of a failing installation say: the rule, and the value that breaks it.

The environments are made up: `torch` is a file of two lines, `nvcc` a script that knows its version only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from project import copy_project

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, as it is in the source distribution."""
    return copy_project(tmp_path_factory.mktemp("install") / "project")


def pip(command: str, copy: Path, folder: Path, *options: str, **environment: str) -> str:
    """The last lines of what pip says on not being able to do it."""
    arguments = [sys.executable, "-m", "pip", command, "--no-build-isolation", "--no-index", "--no-deps"]
    arguments += ["--disable-pip-version-check", *options, str(copy)]
    variables = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CXX")}
    result = subprocess.run(arguments, cwd=folder, env=variables | environment, capture_output=True, text=True)
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    return "\n".join(result.stderr.splitlines()[-8:])


def pip_install(copy: Path, folder: Path, **environment: str) -> str:
    return pip("install", copy, folder, "--target", str(folder / "target"), **environment)


def torch_stub(folder: Path, version: str, cuda: str | None = None) -> dict[str, str]:
    package = folder / "stub/torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"from . import version\n__version__ = {version!r}\n")
    (package / "version.py").write_text(f"cuda = {cuda!r}\n")
    return {"PYTHONPATH": str(package.parent)}


def nvcc_stub(folder: Path, release: str) -> Path:
    """A CUDA_HOME whose nvcc tells its version and fails at all else."""
    nvcc = folder / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release {release}"\n')
    nvcc.chmod(0o755)
    return nvcc.parents[1]


def test_without_torch(copy: Path, tmp_path: Path) -> None:
    stub = torch_stub(tmp_path, "2.13.0")
    (tmp_path / "stub/torch/__init__.py").write_text("raise ImportError('there is none')\n")
    said = pip_install(copy, tmp_path, **stub)
    assert "error: cnnfast builds against torch >= 2.11, which cannot be imported (there is none). Install it" in said


def test_old_torch(copy: Path, tmp_path: Path) -> None:
    said = pip_install(copy, tmp_path, **torch_stub(tmp_path, "2.9.1+cpu"))
    assert "error: cnnfast needs torch >= 2.11, but torch 2.9.1+cpu is installed." in said


def test_old_python(copy: Path, tmp_path: Path) -> None:
    """`pip download` can be told of another Python, and refuses as `pip install` does."""
    said = pip("download", copy, tmp_path, "--python-version", "3.9")
    assert "Package 'cnnfast' requires a different Python: 3.9.0 not in '>=3.10'" in said
    setup = "import runpy, sys; sys.version_info = (3, 9, 18); runpy.run_path('setup.py')"
    result = subprocess.run([sys.executable, "-c", setup], cwd=copy, capture_output=True, text=True)
    assert "cnnfast needs Python >= 3.10, but this is Python 3.9." in result.stderr


@pytest.mark.parametrize("environment", [{"CXX": "no-such-compiler -O1"}, {"PATH": ""}], ids=["CXX", "PATH"])
def test_no_compiler(copy: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    said = pip_install(copy, tmp_path, **torch_stub(tmp_path, "2.13.0"), **environment)
    name = environment.get("CXX", "").partition(" ")[0]
    assert "error: cnnfast needs a C++20 compiler (g++ 11, clang 14 or later), but " in said
    assert f"{name}' is not found. Install one" in said


@pytest.mark.parametrize(
    ("cuda", "environment", "message"),
    [
        (None, {"CNNFAST_CUDA": "1"}, "CNNFAST_CUDA=1 needs a CUDA build of torch, but torch 2.13.0 is none."),
        ("13.0", {"CNNFAST_CUDA": "1", "PATH": ""}, "CNNFAST_CUDA=1, but no nvcc on the PATH and no CUDA_HOME. Name a"),
        ("13.0", {"CNNFAST_CUDA": "1", "CUDA_HOME": "/nowhere"}, "CNNFAST_CUDA=1, but no nvcc in /nowhere/bin. Name a"),
        ("13.0", {"CNNFAST_CUDA": "yes"}, "CNNFAST_CUDA must be auto, 0 or 1, but got CNNFAST_CUDA='yes'."),
    ],
    ids=["cpu-torch", "no-nvcc", "CUDA_HOME", "choice"],
)
def test_no_cuda(copy: Path, tmp_path: Path, cuda: str | None, environment: Mapping[str, str], message: str) -> None:
    said = pip_install(copy, tmp_path, **torch_stub(tmp_path, "2.13.0", cuda), **environment)
    assert message in said


def test_another_cuda(copy: Path, tmp_path: Path) -> None:
    home = nvcc_stub(tmp_path, "12.4")
    environment = {"CNNFAST_CUDA": "1", "CUDA_HOME": str(home)}
    said = pip_install(copy, tmp_path, **torch_stub(tmp_path, "2.13.0+cu130", "13.0"), **environment)
    assert f"CNNFAST_CUDA=1, but {home}/bin/nvcc is release 12.4, and torch 2.13.0+cu130 is" in said
    assert " Name a toolkit of CUDA 13 in CUDA_HOME" in said


def test_toolkit_without_headers(copy: Path, tmp_path: Path) -> None:
    environment = {"CNNFAST_CUDA": "1", "CUDA_HOME": str(nvcc_stub(tmp_path, "13.0"))}
    said = pip_install(copy, tmp_path, **torch_stub(tmp_path, "2.13.0+cu130", "13.0"), **environment)
    assert "nvcc does not find cuda_runtime.h" in said


def test_failing_compiler(copy: Path, tmp_path: Path) -> None:
    said = pip_install(copy, tmp_path, **torch_stub(tmp_path, "2.13.0"), CXX=shutil.which("false") or "false")
    assert "error: cnnfast: a compiler failed; its messages are above." in said
