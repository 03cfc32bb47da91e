"""The emulated CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer: bounds of every tensor and of shared
memory, alignment, overflow of indices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
def test_address_and_undefined_behaviour() -> None:
    libraries = [
        subprocess.run(["c++", f"-print-file-name={name}.so"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan", "libubsan")
    ]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip("the C++ compiler has no libasan.so and libubsan.so")
    environment = os.environ | {
        "CNNFAST_CUDA_HOST": "cuda_host_sanitized",
        "CXXFLAGS": "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer",
        # The interpreter is not built with the sanitizer, and keeps memory until it ends.
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    # The library first: the sanitizer need not watch the compiler.
    library = {name: value for name, value in environment.items() if name != "LD_PRELOAD"}
    subprocess.run([sys.executable, "tests/cuda_host/build.py"], cwd=ROOT, env=library, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/test_cuda_kernels.py"]
    command += ["-k", "every_case or without_input_gradient or winners or tensor_cores or tf32"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    assert " passed" in result.stdout
