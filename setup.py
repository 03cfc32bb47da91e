"""Builds cnnfast._C: every op's schema and the CPU kernels, each instruction set with its own flags.

A ninja file of our own, because torch's BuildExtension has one list of flags for all sources of an extension.
Environment: CXX, CXXFLAGS and LDFLAGS as usual, MAX_JOBS the number of compilers at once.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
# -ffp-contract=fast: a * b + c becomes one FMA, the same one wherever the source is the same.
CXX_FLAGS = ["-std=c++20", "-O3", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
# Symbols come from the torch that is already loaded when _C is, hence no rpath and nothing of libtorch_python.
LINK_FLAGS = ["-shared", "-Wl,--no-undefined", "-Wl,--as-needed"]
LIBRARIES = ["-ltorch_cpu"]

NINJA_RULES = """\
ninja_required_version = 1.5
builddir = build/objects

rule compile
  command = {cxx} -MMD -MF $out.d {flags} $isa_flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $in

rule link
  command = {cxx} $in -o $out {link}
  description = $out

"""


def relative(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def isa_sources() -> dict[str, list[str]]:
    """The instruction sets of this kind of machine whose source is there, with their flags."""
    rows = json.loads((ROOT / "csrc/cpu/isa/isa.json").read_text())
    sources = {f"csrc/cpu/isa/{row['name']}.cpp": row for row in rows}
    return {
        source: row["flags"]
        for source, row in sources.items()
        if platform.machine() in row["machines"] and (ROOT / source).exists()
    }


def find_torch(minimum: tuple[int, int]):
    """The installed torch, once it is sure that cnnfast builds against it."""
    wanted = ".".join(map(str, minimum))
    try:
        import torch
    except ImportError as error:
        raise SetupError(
            f"cnnfast builds against torch >= {wanted}, which cannot be imported ({error}). "
            "Install it first, or install without --no-build-isolation."
        ) from None
    found = tuple(int(n) for n in re.match(r"(\d+)\.(\d+)", torch.__version__).groups())
    if found < minimum:
        raise SetupError(f"cnnfast needs torch >= {wanted}, but torch {torch.__version__} is installed.")
    return torch


def find_compiler() -> list[str]:
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        raise SetupError(
            f"cnnfast needs a C++20 compiler (g++ 11, clang 14 or later), but {compiler[0]!r} is not found. "
            "Install one (Debian, Ubuntu: apt install g++) or name one in the environment variable CXX."
        )
    return compiler


class BuildLibrary(build_ext):
    """Writes build/objects/build.ninja and runs it: only what changed is compiled, on all cores."""

    def build_extension(self, ext: Extension) -> None:
        if platform.system() != "Linux":
            raise SetupError(f"cnnfast is built on Linux only so far, but this is {platform.system()}.")
        # An editable install's build_temp is a new directory each time; here objects outlive it.
        objects = ROOT / "build/objects"
        objects.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        ninja_file = objects / "build.ninja"
        ninja_file.write_text(self.ninja_file(ext, objects.relative_to(ROOT), output))

        command = [sys.executable, "-m", "ninja"] if find_spec("ninja") else ["ninja"]
        command += ["-f", str(ninja_file)]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        try:
            subprocess.run(command, cwd=ROOT, check=True)
        except FileNotFoundError:
            raise SetupError("cnnfast needs ninja to build: pip install ninja.") from None
        except subprocess.CalledProcessError:
            raise SetupError("cnnfast: the C++ compiler failed; its messages are above.") from None

    def ninja_file(self, ext: Extension, objects: Path, output: Path) -> str:
        requirement = next(r for r in self.distribution.install_requires if r.startswith("torch>="))
        minimum = tuple(int(n) for n in re.findall(r"\d+", requirement)[:2])
        torch = find_torch(minimum)
        package = Path(torch.__file__).parent
        isas = isa_sources()
        # The stable ABI of the oldest torch that is accepted: the same library runs on every later one.
        defines = [f"-DTORCH_TARGET_VERSION=0x{minimum[0]:02x}{minimum[1]:02x}000000000000"]
        defines += [f"-DCNNFAST_HAVE_{Path(source).stem.upper()}" for source in isas]
        # As system headers, torch's own warnings stay silent.
        includes = ["-Icsrc", "-isystem", str(package / "include")]
        environment = {name: shlex.split(os.environ.get(name, "")) for name in ("CXXFLAGS", "LDFLAGS")}

        text = NINJA_RULES.format(
            cxx=shlex.join(find_compiler()),
            flags=shlex.join([*CXX_FLAGS, *environment["CXXFLAGS"], *defines, *includes]),
            link=shlex.join([*LINK_FLAGS, *environment["LDFLAGS"], f"-L{package / 'lib'}", *LIBRARIES]),
        )
        built = []
        for source in [*ext.sources, *isas]:
            built.append(objects / Path(source).with_suffix(".o"))
            text += f"build {built[-1]}: compile {source}\n"
            if source in isas:
                text += f"  isa_flags = {shlex.join(isas[source])}\n"
        escaped = re.sub(r"([$: ])", r"$\1", str(output))
        return text + f"\nbuild {escaped}: link {' '.join(map(str, built))}\n"


setup(
    ext_modules=[
        Extension(
            "cnnfast._C",
            relative("csrc/*.cpp") + relative("csrc/cpu/*.cpp"),
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
    # The library uses no symbol of Python at all, so one wheel serves every version.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
