"""Builds cnnfast._C, every op's schema and the CPU kernels, and cnnfast._cuda, the CUDA kernels.

A ninja file of our own, because torch's BuildExtension has one list of flags for all sources of an extension, and asks
for a GPU. Environment: CXX, CXXFLAGS and LDFLAGS as usual, MAX_JOBS the number of compilers at once;
CNNFAST_CUDA=auto (default: where torch is a CUDA build and its nvcc is found), 0 or 1; CUDA_HOME the toolkit, if its
nvcc is not on the PATH; TORCH_CUDA_ARCH_LIST the GPUs, such as "8.0;9.0+PTX".
"""

# For an older Python, too, to come as far as check_python().
from __future__ import annotations

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
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
# Turing to Blackwell.
CUDA_ARCHS = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
# Symbols come from the torch that is already loaded when _C is, hence no rpath and nothing of libtorch_python.
LINK_FLAGS = {"Linux": ["-shared", "-Wl,--no-undefined", "-Wl,--as-needed"], "Darwin": ["-bundle"]}
LIBRARIES = {"cnnfast._C": ["-ltorch_cpu"], "cnnfast._cuda": ["-ltorch_cuda", "-ltorch_cpu"]}

NINJA_RULES = """\
ninja_required_version = 1.5
builddir = build/objects

rule compile
  command = {cxx} -MMD -MF $out.d {flags} $isa_flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $in

rule compile_cuda
  command = {nvcc} -MMD -MF $out.d {nvcc_flags} -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $in

rule link
  command = {cxx} $in -o $out {link}
  description = $out

"""


def check_python() -> None:
    """pip looks for the dependencies first, and would blame torch, of which an older Python has none."""
    wanted = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text()).groups()
    if sys.version_info < tuple(map(int, wanted)):
        found = ".".join(map(str, sys.version_info[:2]))
        raise SystemExit(f"cnnfast needs Python >= {'.'.join(wanted)}, but this is Python {found}.")


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
        raise SetupError(
            f"cnnfast needs torch >= {wanted}, but torch {torch.__version__} is installed. "
            "Upgrade it, or install without --no-build-isolation."
        )
    return torch


def find_compiler() -> list[str]:
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        raise SetupError(
            f"cnnfast needs a C++20 compiler (g++ 11, clang 14 or later), but {compiler[0]!r} is not found. "
            "Install one (Debian, Ubuntu: apt install g++) or name one in the environment variable CXX."
        )
    return compiler


def cuda_archs(nvcc: str) -> str:
    """TORCH_CUDA_ARCH_LIST, or of the default one what this nvcc knows, and PTX of the last."""
    if chosen := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return chosen
    known = {int(number) for number in re.findall(r"compute_(\d+)", run_nvcc(nvcc, "--list-gpu-arch").stdout)}
    return ";".join(arch for arch in CUDA_ARCHS if int(arch.replace(".", "")) in known) + "+PTX"


def gencode(archs: str) -> list[str]:
    """nvcc's flags for a TORCH_CUDA_ARCH_LIST."""
    flags = []
    for arch in archs.replace(" ", ";").split(";"):
        found = re.fullmatch(r"(\d+)\.(\d+[a-z]?)(\+PTX)?", arch)
        if found is None:
            raise SetupError(
                "TORCH_CUDA_ARCH_LIST must be numbers with '+PTX' where wanted, separated by ';', such as "
                f"'8.0;9.0+PTX', but got {arch!r} in {archs!r}."
            )
        number = found[1] + found[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if found[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def run_nvcc(nvcc: str, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([nvcc, *arguments], input=input, capture_output=True, text=True)


def find_nvcc(torch) -> tuple[str, str]:
    """(nvcc, its toolkit's libcudart); SetupError says what is missing."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    wanted = torch.version.cuda
    if nvcc is None:
        raise SetupError(f"no nvcc {'in ' + home + '/bin' if home else 'on the PATH and no CUDA_HOME'}")
    version = re.search(r"release (\d+)\.(\d+)", run_nvcc(nvcc, "--version").stdout)
    if version is None or version[1] != wanted.split(".")[0]:
        found = version[0] if version else "of no known version"
        raise SetupError(f"{nvcc} is {found}, and torch {torch.__version__} is built with CUDA {wanted}")
    # nvcc on the PATH may be a script that calls another: it knows its own toolkit's root.
    tried = run_nvcc(nvcc, "-E", "-x", "cu", "-", input="#include <cuda_runtime.h>\n")
    if tried.returncode != 0:
        raise SetupError(f"{nvcc} does not find cuda_runtime.h: {tried.stderr.strip()}")
    here = re.search(r"_HERE_=(.*)", run_nvcc(nvcc, "--dryrun", "-x", "cu", os.devnull).stderr)
    root = Path(here[1].strip()).parent if here else Path(nvcc).resolve().parent.parent
    libraries = [root / name for name in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib")]
    for folder in libraries:  # in pip's packages of the toolkit there is libcudart.so.13 alone
        if found := sorted(folder.glob("libcudart.so*")):
            return nvcc, str(found[0])
    raise SetupError(f"no libcudart.so in {', '.join(map(str, libraries))}")


def find_cuda(torch) -> tuple[str, str] | None:
    """What :func:`find_nvcc` finds where CUDA is to be built; None, having said why, where it is not."""
    choice = os.environ.get("CNNFAST_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SetupError(f"CNNFAST_CUDA must be auto, 0 or 1, but got CNNFAST_CUDA={choice!r}.")
    if choice == "0" or (choice == "auto" and torch.version.cuda is None):
        print(f"cnnfast: CPU kernels only ({'CNNFAST_CUDA=0' if choice == '0' else 'torch is a CPU build'}).")
        return None
    if torch.version.cuda is None:
        raise SetupError(f"cnnfast: CNNFAST_CUDA=1 needs a CUDA build of torch, but torch {torch.__version__} is none.")
    try:
        return find_nvcc(torch)
    except SetupError as error:
        if choice == "1":
            raise SetupError(
                f"cnnfast: CNNFAST_CUDA=1, but {error}. Name a toolkit of CUDA {torch.version.cuda.split('.')[0]} in "
                "CUDA_HOME; CNNFAST_CUDA=0 builds the CPU kernels alone."
            ) from None
        print(f"cnnfast: CPU kernels only: {error}. CNNFAST_CUDA=1 makes this an error, CNNFAST_CUDA=0 keeps it quiet.")
        return None


class BuildLibrary(build_ext):
    """Writes a ninja file for each library and runs it: only what changed is compiled, on all cores."""

    def build_extensions(self) -> None:
        requirement = next(r for r in self.distribution.install_requires if r.startswith("torch>="))
        self.minimum = tuple(int(n) for n in re.findall(r"\d+", requirement)[:2])
        self.torch = find_torch(self.minimum)
        self.cuda = find_cuda(self.torch)
        if self.cuda is None:
            Path(self.get_ext_fullpath("cnnfast._cuda")).unlink(missing_ok=True)
            self.extensions = [ext for ext in self.extensions if ext.name != "cnnfast._cuda"]
        super().build_extensions()

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        if self.cuda is None:  # that of an earlier build in place would be loaded
            (ROOT / self.get_ext_filename("cnnfast._cuda")).unlink(missing_ok=True)

    def build_extension(self, ext: Extension) -> None:
        if platform.system() not in LINK_FLAGS:
            raise SetupError(f"cnnfast is built on Linux and macOS only so far, but this is {platform.system()}.")
        # An editable install's build_temp is a new directory each time; here objects outlive it.
        objects = ROOT / "build/objects"
        objects.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        ninja_file = objects / f"{ext.name}.ninja"
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
            without = " CNNFAST_CUDA=0 builds the CPU kernels alone." if ext.name == "cnnfast._cuda" else ""
            raise SetupError(f"cnnfast: a compiler failed; its messages are above.{without}") from None

    def ninja_file(self, ext: Extension, objects: Path, output: Path) -> str:
        package = Path(self.torch.__file__).parent
        isas = isa_sources() if ext.name == "cnnfast._C" else {}
        nvcc, cudart = self.cuda or ("nvcc", "")
        libraries = LIBRARIES[ext.name] + ([cudart] if ext.name == "cnnfast._cuda" else [])
        archs = cuda_archs(nvcc) if self.cuda else ""
        # The stable ABI of the oldest torch that is accepted: the same library runs on every later one.
        defines = [f"-DTORCH_TARGET_VERSION=0x{self.minimum[0]:02x}{self.minimum[1]:02x}000000000000"]
        defines += ["-DUSE_CUDA", f'-DCNNFAST_CUDA_ARCHS="{archs}"'] if ext.name == "cnnfast._cuda" else []
        defines += [f"-DCNNFAST_HAVE_{Path(source).stem.upper()}" for source in isas]
        # As system headers, torch's own warnings stay silent.
        includes = ["-Icsrc", "-isystem", str(package / "include")]
        environment = {name: shlex.split(os.environ.get(name, "")) for name in ("CXXFLAGS", "LDFLAGS")}

        text = NINJA_RULES.format(
            cxx=shlex.join(find_compiler()),
            flags=shlex.join([*CXX_FLAGS, *environment["CXXFLAGS"], *defines, *includes]),
            nvcc=shlex.quote(nvcc),
            nvcc_flags=shlex.join([*NVCC_FLAGS, *(gencode(archs) if self.cuda else []), "-Icsrc"]),
            link=shlex.join(
                [*LINK_FLAGS[platform.system()], *environment["LDFLAGS"], f"-L{package / 'lib'}", *libraries]
            ),
        )
        built = []
        for source in [*ext.sources, *isas]:
            built.append(objects / f"{source}.o")
            text += f"build {built[-1]}: {'compile_cuda' if source.endswith('.cu') else 'compile'} {source}\n"
            if source in isas:
                text += f"  isa_flags = {shlex.join(isas[source])}\n"
        escaped = re.sub(r"([$: ])", r"$\1", str(output))
        return text + f"\nbuild {escaped}: link {' '.join(map(str, built))}\n"


check_python()
setup(
    ext_modules=[
        Extension(
            "cnnfast._C",
            relative("csrc/*.cpp") + relative("csrc/cpu/*.cpp"),
            py_limited_api=True,
        ),
        Extension(
            "cnnfast._cuda",
            relative("csrc/cuda/*.cpp") + relative("csrc/cuda/kernels/*.cu"),
            py_limited_api=True,
        ),
    ],
    cmdclass={"build_ext": BuildLibrary},
    # The library uses no symbol of Python at all, so one wheel serves every version.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
