"""Builds cnnfast._C: every op's schema and the CPU kernels, each instruction set with its own flags."""

import json
import platform
from pathlib import Path

from setuptools import setup
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
# The oldest torch whose stable ABI this package uses (2.11); the same binary runs on every later one.
TORCH_TARGET_VERSION = "0x020b000000000000"
CXX_FLAGS = ["-std=c++20", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=fast"]


class BuildIsaExtension(BuildExtension):
    """Compiles csrc/cpu/isa/*.cpp with their own flags before the extension that they are linked into."""

    def build_extension(self, ext):
        for isa in json.loads((ROOT / "csrc/cpu/isa/isa.json").read_text()):
            source = f"csrc/cpu/isa/{isa['name']}.cpp"
            if platform.machine() not in isa["machines"] or not (ROOT / source).exists():
                continue
            # A compiler of our own: BuildExtension's has one list of flags for all sources.
            compiler = new_compiler()
            customize_compiler(compiler)
            ext.extra_objects += compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=["csrc"],
                extra_postargs=["-fPIC", *CXX_FLAGS, *isa["flags"]],
            )
            ext.define_macros.append((f"CNNFAST_HAVE_{isa['name'].upper()}", None))
        super().build_extension(ext)


setup(
    name="cnnfast",
    version="0.1.0",
    packages=["cnnfast"],
    ext_modules=[
        CppExtension(
            "cnnfast._C",
            sorted(
                str(p.relative_to(ROOT))
                for p in [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
            ),
            include_dirs=[str(ROOT / "csrc")],
            define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
            extra_compile_args=CXX_FLAGS,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildIsaExtension},
)
