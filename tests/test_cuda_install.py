"""Installing beside a CUDA build of torch, in a copy of the project: both parts, the CPU's alone, and what is said.

The environment is the one that the wheel is tried in (`make wheel-later`), if its torch is a CUDA build.
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

PYTHON = Path(f"{sys.prefix}-later") / "bin/python"
# One architecture: what is tested is the way, not the kernels.
ARCHS = "8.0+PTX"
CPU_TESTS = ["tests/test_exact.py", "tests/test_conv2d_relu_max_pool2d.py", "tests/test_pool_kernels.py"]

pytestmark = pytest.mark.long


def run(
    python: Path, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(cwd)} | dict(environment or {}),
        capture_output=True,
        text=True,
    )


def build(copy: Path, **environment: str) -> str:
    result = run(PYTHON, "setup.py", "build_ext", "--inplace", cwd=copy, environment=environment)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout


def without_nvcc(folder: Path) -> str:
    """A PATH on which everything else is found."""
    folder.mkdir()
    for directory in reversed(os.environ["PATH"].split(os.pathsep)):
        for tool in Path(directory).glob("*"):
            link = folder / tool.name
            link.unlink(missing_ok=True)
            if tool.name != "nvcc":
                link.symlink_to(tool)
    return str(folder)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, built with both parts."""
    if not PYTHON.exists():
        pytest.skip(f"no environment {PYTHON.parents[1]}: make wheel-later makes it")
    cuda = subprocess.run([PYTHON, "-c", "import torch; print(torch.version.cuda)"], capture_output=True, text=True)
    if cuda.stdout.strip() == "None":
        pytest.skip("its torch is a CPU build")
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on the PATH")
    folder = copy_project(tmp_path_factory.mktemp("install") / "project")
    build(folder, CNNFAST_CUDA="1", TORCH_CUDA_ARCH_LIST=ARCHS)
    return folder


def test_both_parts(copy: Path) -> None:
    assert (copy / "cnnfast/_cuda.abi3.so").exists()
    info = run(PYTHON, "-m", "cnnfast.info", cwd=copy)
    assert info.returncode == 0, info.stderr
    assert ARCHS in info.stdout
    tests = run(PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CPU_TESTS, cwd=copy)
    assert tests.returncode == 0, tests.stdout[-4000:]


def test_without_a_driver_torch_says_so(copy: Path) -> None:
    code = "import torch, cnnfast\nprint(torch.cuda.is_available())\ntorch.zeros(1, 1, 4, 4, device='cuda')"
    result = run(PYTHON, "-c", code, cwd=copy)
    if result.stdout.startswith("True"):
        pytest.skip("this machine has a GPU")
    assert "Found no NVIDIA driver" in result.stderr


def test_its_cpu_library_loads_in_another_torch(copy: Path) -> None:
    """In that of this environment; if it is a CPU build, the CUDA library cannot be loaded there, and that is said."""
    code = (
        "import torch, cnnfast.functional as F, cnnfast.library as library\n"
        "assert library.load_error is None, library.load_error\n"
        "assert (library.cuda_error is None) == (torch.version.cuda is not None), library.cuda_error\n"
        "x, w = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)\n"
        "torch.testing.assert_close(F.conv2d(x, w), torch.nn.functional.conv2d(x, w), rtol=1e-4, atol=1e-4)\n"
    )
    result = run(Path(sys.executable), "-c", code, cwd=copy)
    assert result.returncode == 0, result.stderr


def test_only_the_cpus_part(copy: Path, tmp_path: Path) -> None:
    """A library of an earlier build goes away, lest it be loaded."""
    assert "CPU kernels only (CNNFAST_CUDA=0)" in build(copy, CNNFAST_CUDA="0")
    assert not (copy / "cnnfast/_cuda.abi3.so").exists()
    path = {"PATH": without_nvcc(tmp_path / "bin"), "CUDA_HOME": ""}
    assert "CPU kernels only: no nvcc on the PATH" in build(copy, CNNFAST_CUDA="auto", **path)
    refused = run(PYTHON, "setup.py", "build_ext", "--inplace", cwd=copy, environment={"CNNFAST_CUDA": "1", **path})
    assert refused.returncode != 0
    assert "CNNFAST_CUDA=1, but no nvcc on the PATH" in refused.stderr
    unknown = run(PYTHON, "setup.py", "build_ext", "--inplace", cwd=copy, environment={"CNNFAST_CUDA": "yes"})
    assert "CNNFAST_CUDA must be auto, 0 or 1, but got CNNFAST_CUDA='yes'" in unknown.stderr
