"""The emulation's tensor cores place elements as the PTX ISA's tables say; `make gpu-check` asks a GPU the same."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from cuda_host.build import FLAGS

ROOT = Path(__file__).resolve().parents[1]


def test_fragments_lie_where_the_tables_say(tmp_path: Path) -> None:
    program = tmp_path / "fragment_probe"
    command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS, "-DCNNFAST_CUDA_EMULATION"]
    command += ["-Icsrc", "-Itests/cuda_host", "-x", "c++", "tests/cuda_host/fragment_probe.cu"]
    command += ["tests/cuda_host/emulation.cpp", "-o", str(program)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert result.stdout == "0 elements out of place\n"
