"""What a machine with a GPU must show, stage by stage: ``python tests/gpu_check.py [--out DIR]``.

Nothing is fetched: torch (2.11 or later, built with CUDA), nvcc, ninja and pytest must be installed. Each stage writes
DIR/STAGE.json as soon as it ends, so that nothing is lost when time runs out; the exit code is that of the worst stage.

    build       the library for this device's architecture alone
    probe       whether the tensor cores' fragments lie as the PTX ISA says
    tests       every kernel's test on the device, and the dtype, layout and error tests that take a device
    benchmarks  the suite of the lecture's network against cuDNN and torch.compile
    sanitizer   compute-sanitizer's memcheck, racecheck, initcheck and synccheck on small shapes, where it is installed
    avx512      the CPU tests with the AVX-512 kernels, where the processor has it: GPU machines mostly do
    all_benchmarks  the suites of small blocks and of single ops
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEVICE_TESTS = [
    "tests/test_cuda_kernels.py",
    "tests/test_cuda_augment.py",
    "tests/test_exact.py",
    "tests/test_errors.py",
]
CPU_TESTS = ["tests/test_conv2d_relu_max_pool2d.py", "tests/test_pool_kernels.py", "tests/test_relu_kernels.py"]
CPU_TESTS += ["tests/test_conv2d_kernels.py", "tests/test_exact.py", "tests/test_nan.py", "tests/test_opinfo.py"]
# Small shapes of every kernel: a sanitizer slows a kernel down a hundredfold.
SANITIZED = "(test_every_case or tensor_cores) and (lopsided or tail or odd_size or tiles) or without_input_gradient"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def run(*command: str, **environment: str) -> dict[str, Any]:
    """Runs a command, showing its output; how it ended, how long it took and its last lines."""
    print("$", " ".join(command), flush=True)
    start = time.perf_counter()
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:  # later stages still run
        return {"command": " ".join(command), "exit": 127, "seconds": 0.0, "output": [str(error)]}
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    code = process.wait()
    seconds = round(time.perf_counter() - start, 1)
    return {"command": " ".join(command), "exit": code, "seconds": seconds, "output": lines[-40:]}


def build() -> list[dict[str, Any]]:
    import torch

    arch = ".".join(map(str, torch.cuda.get_device_capability()))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return [run(*command, CNNFAST_CUDA="1", TORCH_CUDA_ARCH_LIST=arch)]


def probe() -> list[dict[str, Any]]:
    import torch

    capability = torch.cuda.get_device_capability()
    if capability[0] < 8:
        return [{"command": "fragment_probe", "exit": 0, "seconds": 0.0, "output": ["no tensor cores that are used"]}]
    arch = "".join(map(str, capability))
    program = ROOT / "build/gpu-check/fragment_probe"
    program.parent.mkdir(parents=True, exist_ok=True)
    source = "tests/cuda_host/fragment_probe.cu"
    home = os.environ.get("CUDA_HOME")
    nvcc = run(
        os.path.join(home, "bin/nvcc") if home else "nvcc",
        "-std=c++20",
        f"-arch=sm_{arch}",
        "-Icsrc",
        source,
        "-o",
        str(program),
    )
    return [nvcc, run(str(program))] if nvcc["exit"] == 0 else [nvcc]


def tests() -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda"]
    return [run(*command, *DEVICE_TESTS)]


def benchmarks() -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--suite", "lecture"]
    return [run(*command, "--out", str(ROOT / "build/gpu-check"))]


def sanitizer() -> list[dict[str, Any]]:
    if shutil.which("compute-sanitizer") is None:
        return [{"command": "compute-sanitizer", "exit": 0, "seconds": 0.0, "output": ["not installed"]}]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda", "-k", SANITIZED]
    # Caching would hide what lies beyond a tensor, and what was never written, in one large allocation.
    return [
        run(
            "compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", *pytest, DEVICE_TESTS[0],
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        for tool in TOOLS
    ]  # fmt: skip


def avx512() -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long"]
    asked = [sys.executable, "-c", "import cnnfast, torch; print(torch.ops.cnnfast.cpu_info())"]
    supported = json.loads(subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout)[
        "supported"
    ]
    if "avx512" not in supported:
        return [{"command": "avx512", "exit": 0, "seconds": 0.0, "output": [f"this processor has {supported}"]}]
    return [run(*command, *CPU_TESTS, CNNFAST_CPU_ISA="avx512")]


def all_benchmarks() -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--out", str(ROOT / "build/gpu-check")]
    return [run(*command, "--suite", suite) for suite in ("small", "ops")]


STAGES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "build": build,
    "probe": probe,
    "tests": tests,
    "benchmarks": benchmarks,
    "sanitizer": sanitizer,
    "avx512": avx512,
    "all_benchmarks": all_benchmarks,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-check", help="folder of the stages' JSON")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, in this order (default: all)")
    arguments = parser.parse_args()
    chosen = arguments.stages.split(",")
    if unknown := set(chosen) - set(STAGES):
        parser.error(f"--stages: must be among {','.join(STAGES)}, but got {','.join(sorted(unknown))}")
    import torch

    if not torch.cuda.is_available():
        print(f"gpu_check: torch {torch.__version__} finds no GPU.", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name()
    arguments.out.mkdir(parents=True, exist_ok=True)
    worst = 0
    for stage in chosen:
        steps = STAGES[stage]()
        worst = max(worst, *(abs(step["exit"]) for step in steps))
        about = {"device": device, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "steps": steps}
        (arguments.out / f"{stage}.json").write_text(json.dumps(about, indent=1) + "\n")
    return worst


if __name__ == "__main__":
    sys.exit(main())
