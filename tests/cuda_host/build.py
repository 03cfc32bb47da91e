"""Builds the CUDA kernels and launchers for the CPU, over the emulation: ``python tests/cuda_host/build.py``.

Prints the library's path; loaded into torch, it has every op as torch.ops.cnnfast_emulated.NAME. Only what changed is
compiled. CXXFLAGS is honoured (for sanitizers); CNNFAST_CUDA_HOST names the folder in build/.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # unroll is nvcc's
FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *WARNINGS]

NINJA = """\
ninja_required_version = 1.5
builddir = {objects}

rule compile
  command = {cxx} -MMD -MF $out.d {flags} -x c++ -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $in

rule link
  command = {cxx} -shared {flags} $in -o $out -L{torch}/lib -ltorch_cpu
  description = $out

"""


def build() -> Path:
    """The library."""
    objects = ROOT / "build" / os.environ.get("CNNFAST_CUDA_HOST", "cuda_host")
    objects.mkdir(parents=True, exist_ok=True)
    package = Path(torch.__file__).parent
    library = objects / "cnnfast_emulated.so"
    flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")), "-DCNNFAST_CUDA_EMULATION"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-Icsrc", "-Itests/cuda_host"]
    flags += ["-isystem", str(package / "include")]
    sources = ["csrc/library.cpp", "csrc/cuda/library.cpp", "tests/cuda_host/emulation.cpp", "tests/cuda_host/ops.cpp"]
    sources += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/kernels/*.cu"))
    text = NINJA.format(
        cxx=os.environ.get("CXX", "c++"), flags=shlex.join(flags), objects=objects.relative_to(ROOT), torch=package
    )
    made = [objects.relative_to(ROOT) / f"{source}.o" for source in sources]
    text += "".join(f"build {target}: compile {source}\n" for target, source in zip(made, sources, strict=True))
    text += f"build {library}: link {' '.join(map(str, made))}\n"
    ninja_file = objects / "build.ninja"
    ninja_file.write_text(text)
    subprocess.run([sys.executable, "-m", "ninja", "--quiet", "-f", str(ninja_file)], cwd=ROOT, check=True)
    return library


if __name__ == "__main__":
    print(build())
