"""nvcc compiles every CUDA kernel for every listed GPU without a warning, within its budget of registers, and to the
instructions that are meant. The fused ones move the bytes that they must, and few others."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_host.build import FLAGS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path.stem for path in ROOT.glob("csrc/cuda/kernels/*.cu"))
ARCHS = ("75", "80", "86", "89", "90", "100", "120")

# Registers of a thread at most, by kernel: of the 65,536 of a multiprocessor, which should hold several blocks.
BUDGET = {"gemm": 255, "depthwise": 255, "augment_strips<": 96, "fused<": 80, "backward<3>": 80, "backward<5>": 96}
DEFAULT_BUDGET = 128
REGISTERS = 65536

# Machine instructions that must be there: in all of a source's kernels together, from compute capability 8.0 on.
TENSOR_CORES = {"HMMA.1688.F32.TF32", "HMMA.16816.F32", "HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128"}
MEANT = {
    "implicit_gemm_mma": TENSOR_CORES,
    "implicit_gemm_mma_backward_weight": TENSOR_CORES - {"LDSM.16.M88.4"} | {"LDSM.16.MT88.4"},
    "conv2d_relu_max_pool2d": {"STG.E.128"},
    "pool_sparse_backward": {"STG.E.128"},
    "relu": {"LDG.E.128", "STG.E.128"},
}
# Local memory (spills, arrays that are indexed), and atomics, whose order of additions is nobody's.
NEVER = re.compile(r"(LDL|STL|RED|ATOM|ATOMG)(\.|$)")

# Bytes that the lecture's two layers must move for an image in float32: input, pooled output or its gradient, a byte a
# window, and backward the second layer's input gradient. All that is moved in a batch may be LARGER times that.
MUST_MOVE = {"forward": 14_896 + 15_288, "backward": 14_896 + 24_696}
LARGER, BATCH = 1.15, 4096
COUNTED = ("moved", "requested")  # see cuda_host/traffic.cpp

pytestmark = pytest.mark.long
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")


def entries(report: str) -> list[tuple[str, str, int, int, int, int]]:
    """(kernel, arch, registers, static shared bytes, stack bytes, spilled bytes) of each of ptxas's reports."""
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        report,
        re.DOTALL,
    )
    names = subprocess.run(["c++filt"], input="\n".join(f[0] for f in found), capture_output=True, text=True).stdout
    short = [
        re.sub(r"\(.*", "", name.replace("(anonymous namespace)::", "")).split("::", 1)[1] for name in names.split("\n")
    ]
    table = []
    for name, (_, arch, stack, stores, loads, registers, rest) in zip(short, found, strict=True):
        shared = re.search(r"(\d+) bytes smem", rest)
        figures = int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads)
        table.append((name.removeprefix("void ").removeprefix("cnnfast::"), arch, *figures))
    return table


def instructions(binary: Path) -> dict[str, set[str]]:
    """The instructions, with their modifiers, that the machine code of each architecture has."""
    files = importlib.metadata.files("nvidia-cuda-cuobjdump") or []
    disassembler = next(Path(file.locate()) for file in files if file.name == "cuobjdump")
    path = f"{disassembler.parent}{os.pathsep}{os.environ['PATH']}"  # it calls nvdisasm, which lies beside it
    command = [str(disassembler), "-sass", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}).stdout
    found: dict[str, set[str]] = {}
    for part in re.split(r"code for sm_", text)[1:]:
        arch = re.match(r"\d+", part)
        assert arch is not None
        names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", part)
        found.setdefault(arch[0], set()).update(names)
    return found


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
def test_kernels(source: str, tmp_path: Path) -> None:
    binary = tmp_path / "kernels.o"
    command = ["nvcc", "-std=c++20", "-O3", "-Werror=all-warnings", "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror", "-Icsrc"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    command += ["-Xptxas=-v", "-c", f"csrc/cuda/kernels/{source}.cu", "-o", str(binary)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    table = entries(result.stderr)
    assert {arch for _, arch, *_ in table} == set(ARCHS)
    for kernel, arch, registers, shared, stack, spilled in table:
        threads = REGISTERS // (-(-registers // 8) * 8)
        print(
            f"{kernel:<60} sm_{arch:<4} {registers:>4} registers ({min(threads, 2048):>4} threads) {shared:>6} bytes "
            f"of static shared memory {stack:>4} of stack {spilled:>4} spilled"
        )
    for kernel, arch, registers, _, stack, spilled in table:
        budget = next((most for start, most in BUDGET.items() if kernel.startswith(start)), DEFAULT_BUDGET)
        assert registers <= budget, f"{kernel} on sm_{arch}: {registers} registers, but its budget is {budget}"
        assert max(stack, spilled) == 0, f"{kernel} on sm_{arch}: {stack} bytes of stack, {spilled} spilled"
    code = instructions(binary)
    assert set(code) == set(ARCHS)
    for arch, used in code.items():
        assert "EXIT" in used
        never = sorted(name for name in used if NEVER.match(name))
        assert not never, f"{source} on sm_{arch} has {never}"
        missing = MEANT.get(source, set()) - used if arch != "75" else set()
        assert not missing, f"{source} on sm_{arch} lacks {sorted(missing)}"


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What cuda_host/traffic.cpp counts."""
    folder = tmp_path_factory.mktemp("traffic")
    compiler = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS, "-DCNNFAST_CUDA_EMULATION"]
    compiler += ["-Icsrc", "-Itests/cuda_host", "-x", "c++"]
    kernels = [f"csrc/cuda/kernels/{name}.cu" for name in ("conv2d_relu_max_pool2d", "pool_sparse_backward")]
    objects = [str(folder / f"{Path(source).stem}.o") for source in kernels]
    program = str(folder / "traffic")
    commands = [
        [*compiler, "-fsanitize=thread", "-c", source, "-o", target]
        for source, target in zip(kernels, objects, strict=True)
    ]
    commands.append([*compiler, "tests/cuda_host/emulation.cpp", "tests/cuda_host/traffic.cpp"])
    commands[-1] += ["-x", "none", *objects, "-o", program]
    for command in commands:
        built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr[-4000:]
    result = subprocess.run([program, str(BATCH)], capture_output=True, text=True, check=True)
    return list(csv.DictReader(result.stdout.splitlines()))


@pytest.mark.parametrize("kernel", MUST_MOVE)
def test_bytes_per_image(kernel: str, traffic: list[dict[str, str]]) -> None:
    moved = requested = once = 0.0

    def show(what: str, moved: float, requested: float, once: float) -> None:
        print(
            f"fused {kernel:<8} {what:<8} {moved:>9,.0f} bytes an image moved, {requested:>7,.0f} asked for by warps, "
            f"{once:>9,.0f} moved once a launch"
        )

    for layer in ("1 -> 12", "12 -> 24"):
        rows = [row for row in traffic if (row["layer"], row["kernel"]) == (layer, kernel)]
        figures = [sum(int(r[name]) / int(r["images"]) for r in rows if r["of_images"] == "1") for name in COUNTED]
        # Weights, which all blocks read, their gradients and partial sums.
        figures.append(sum(int(row["moved"]) for row in rows if row["of_images"] == "0"))
        show(layer, *figures)
        moved, requested, once = moved + figures[0], requested + figures[1], once + figures[2]
    show("both", moved, requested, once)
    must = MUST_MOVE[kernel]
    all_of_them = requested + once / BATCH
    print(f"  {all_of_them / must:.3f} times the {must:,} that must be moved, in a batch of {BATCH}")
    assert moved >= must, "a load or store was not seen"
    assert all_of_them <= LARGER * must


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-m", "long", "-s"]))
