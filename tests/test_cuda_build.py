"""nvcc compiles every CUDA kernel for every listed GPU without a warning, within its budget of registers and spills."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path.stem for path in ROOT.glob("csrc/cuda/kernels/*.cu"))
ARCHS = ("75", "80", "86", "89", "90", "100", "120")

# Registers of a thread at most, by kernel: of the 65,536 of a multiprocessor, which should hold several blocks.
BUDGET = {"gemm": 255, "depthwise": 255, "fused<": 80, "backward<3>": 80, "backward<5>": 96}
DEFAULT_BUDGET = 128

pytestmark = pytest.mark.long
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")


def entries(report: str) -> list[tuple[str, str, int, int, int]]:
    """(kernel, arch, registers, stack bytes, spilled bytes) of each of ptxas's reports."""
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    names = subprocess.run(["c++filt"], input="\n".join(f[0] for f in found), capture_output=True, text=True).stdout
    short = [
        re.sub(r"\(.*", "", name.replace("(anonymous namespace)::", "")).split("::", 1)[1] for name in names.split("\n")
    ]
    return [
        (name, arch, int(registers), int(stack), int(stores) + int(loads))
        for name, (_, arch, stack, stores, loads, registers) in zip(short, found, strict=True)
    ]


def test_launchers_compile() -> None:
    """What the extension compiles beside the kernels; torch's headers of a CPU build suffice for that."""
    command = [
        "c++",
        "-std=c++20",
        "-fsyntax-only",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DUSE_CUDA",
        "-Icsrc",
    ]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", '-DCNNFAST_CUDA_ARCHS="9.0"']
    command += ["-isystem", str(Path(torch.__file__).parent / "include"), "csrc/cuda/library.cpp"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES)
def test_resources(source: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++20", "-O3", "-Werror=all-warnings", "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror", "-Icsrc"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    command += ["-Xptxas=-v", "-c", f"csrc/cuda/kernels/{source}.cu", "-o", str(tmp_path / "kernels.o")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    table = entries(result.stderr)
    assert {arch for _, arch, *_ in table} == set(ARCHS)
    for name, arch, registers, stack, spilled in table:
        print(f"{name:<70} sm_{arch:<4} {registers:>4} registers {stack:>4} bytes of stack {spilled:>4} spilled")
    for name, arch, registers, stack, spilled in table:
        kernel = name.removeprefix("void ").removeprefix("cnnfast::")
        budget = next((most for start, most in BUDGET.items() if kernel.startswith(start)), DEFAULT_BUDGET)
        assert registers <= budget, f"{kernel} on sm_{arch}: {registers} registers, but its budget is {budget}"
        assert max(stack, spilled) == 0, f"{kernel} on sm_{arch}: {stack} bytes of stack, {spilled} spilled"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-m", "long", "-s"]))
