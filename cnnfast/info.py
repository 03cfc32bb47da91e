"""What is installed, what was built, and what runs where: ``python -m cnnfast.info [--json]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from . import library, routing, tuning
from .version import __version__

# GNU's, Intel's and LLVM's, also under the names that wheels give their own copies (libgomp-24e2ab19.so.1.0.0).
_OPENMP = re.compile(r"^(libgomp|libiomp5?|libomp|vcomp)[-.\d]")
_ENVIRONMENT = (
    "CNNFAST_AUTOTUNE",
    "CNNFAST_AUTOTUNE_CACHE",
    "CNNFAST_CPU_ISA",
    "CNNFAST_STRICT",
    "CNNFAST_WINOGRAD",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def collect() -> dict[str, Any]:
    """Everything the report shows, ready for JSON.

    Returns:
        ``versions``; ``library`` (its file, or the reason why it is not loaded); ``cpu`` (instruction set chosen, why,
        those built and those this processor supports; None without the library); ``cuda`` (the CUDA library's file and
        the compute capabilities it was built for, or why it is not loaded); ``threads``; ``openmp`` (files of
        the OpenMP runtimes in this process: more than one costs speed); ``environment``; ``ops`` (op -> device ->
        dtypes with a kernel of cnnfast's own); ``fallbacks`` (see :func:`cnnfast.fallbacks`); ``autotune`` (the
        arguments of :class:`cnnfast.autotune`, and how many choices there are).
    """
    return {
        "versions": {"cnnfast": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "platform": platform.platform(),
        "library": {"file": library.path and library.path.name, "error": library.load_error},
        "cpu": None if library.load_error else json.loads(torch.ops.cnnfast.cpu_info()),
        "cuda": {
            "file": library.cuda_path and library.cuda_path.name,
            "error": library.cuda_error,
            "archs": None if library.cuda_error else torch.ops.cnnfast.cuda_archs(),
        },
        "threads": torch.get_num_threads(),
        "openmp": openmp_runtimes(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "ops": routing.table(),
        "fallbacks": routing.fallbacks(),
        "autotune": tuning.state(),
    }


def openmp_runtimes() -> list[str] | None:
    """Files of the OpenMP runtimes loaded in this process; None where the system does not tell (not Linux)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    # The sixth column, absent for anonymous memory, is the file.
    columns = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    files = {line[5] for line in columns if len(line) == 6}
    return sorted(file for file in files if _OPENMP.match(Path(file).name))


def render(info: dict[str, Any]) -> str:
    """``collect()`` as text."""
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in info["versions"].items())),
        ("platform", info["platform"]),
        ("library", info["library"]["error"] or f"{info['library']['file']} loaded"),
    ]
    if cpu := info["cpu"]:
        rows += [
            ("instruction set", f"{cpu['isa']}: {cpu['reason']}"),
            ("", f"built: {', '.join(cpu['built'])}; this processor has: {', '.join(cpu['supported'])}"),
        ]
    cuda = info["cuda"]
    rows.append(("CUDA", cuda["error"] or f"{cuda['file']} loaded, built for {cuda['archs']}"))
    rows.append(("threads", str(info["threads"])))
    if (openmp := info["openmp"]) is not None:
        rows += [("OpenMP runtimes", f"{len(openmp)}"), *(("", file) for file in openmp)]
    rows += [("environment", f"{name}={value}") for name, value in info["environment"].items()]
    autotune = info["autotune"]
    cache = f", kept in {autotune['cache']}" if autotune["cache"] else ""
    rows.append(("autotune", f"{autotune['choices']} choices{cache}" if autotune["enabled"] else "off"))
    for op, devices in info["ops"].items():
        own = "; ".join(f"{device}: {', '.join(dtypes)}" for device, dtypes in devices.items())
        rows.append((op, own or "torch's own op"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cnnfast.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    info = collect()
    print(json.dumps(info, indent=2) if parser.parse_args(arguments).json else render(info))


if __name__ == "__main__":
    main()
