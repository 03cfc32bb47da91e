"""What a result must say about where it was taken."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

import cnnfast
from cnnfast import info, library
from cnnfast.precision import allow_tf32

from . import gpu
from .rivals import describe
from .suites import Options

__all__ = ["Unavailable", "choose_device", "close", "collect", "copy_bandwidth", "cpu_model", "probe"]

ROOT = Path(__file__).parent.parent
OPTIONAL_PACKAGES = ("onnxruntime", "openvino", "onnxscript", "numpy", "torchvision", "kornia")


class Unavailable(Exception):
    """The benchmarks cannot run as asked; the message says why."""


def choose_device(name: str, with_suites: Collection[str]) -> str:
    """The device to run on; "auto" takes the GPU where everything for it is there, else the CPU.

    Raises:
        Unavailable: cnnfast's library is missing, or "cuda" was asked for and something is, which the message names.
    """
    if library.load_error:
        raise Unavailable(f"nothing of ours to time: {library.load_error}")
    if name == "cpu":
        return name
    if not torch._C._dispatch_has_kernel_for_dispatch_key("cnnfast::conv2d_forward", "CUDA"):
        missing = "this build of cnnfast has no CUDA kernels"
    elif not torch.cuda.is_available():
        missing = "torch finds no GPU"
    elif "cuda" not in with_suites:
        missing = "no suite of these benchmarks runs on a GPU"
    else:
        return "cuda"
    if name == "auto":
        return "cpu"
    raise Unavailable(f"--device cuda: {missing}")


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _commit() -> str:
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    # Results of earlier runs do not make a tree dirty; an edited kernel does.
    return commit + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _versions() -> dict[str, str]:
    onednn = re.search(r"MKL-DNN v(\S+)|oneDNN v(\S+)", torch.__config__.show())
    versions = {
        "cnnfast": cnnfast.__version__,
        "torch": torch.__version__,
        "oneDNN": next(filter(None, onednn.groups())) if onednn else "none",
        "python": platform.python_version(),
    }
    for package in OPTIONAL_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def probe(threads: int, seconds: float = 0.3) -> tuple[float, float]:
    """What ``threads`` threads reach with nothing but fused multiply-adds.

    Returns:
        1e9 operations per second, and the share of the processor time asked for that this process got: less than 1
        where others were running.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        wall, used = time.perf_counter(), time.process_time()
        flops = float(torch.ops.cnnfast.fma_peak(seconds, threads))
        wall, used = time.perf_counter() - wall, time.process_time() - used
    finally:
        torch.set_num_threads(before)
    return flops / 1e9, used / (wall * threads)


def copy_bandwidth(threads: int, megabytes: int = 128, repeats: int = 10) -> float:
    """1e9 bytes per second, read and written, of the fastest copy of a tensor that no cache holds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source = torch.zeros(megabytes << 18)
        target = torch.empty_like(source)
        seconds = []
        for _ in range(1 + repeats):  # the first touches the pages
            start = time.perf_counter()
            target.copy_(source)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * source.nbytes / min(seconds[1:]) / 1e9


def collect(suite: str, options: Options) -> dict[str, Any]:
    """The metadata of a run that begins now; ``close`` completes it."""
    cnnfast.fallbacks(reset=True)
    peak, share = probe(options.threads)
    about_gpu = None
    if options.device == "cuda":
        peak = gpu.matmul_rate(allow_tf32()) / 1e9
        about_gpu = gpu.about()
    return {
        "suite": suite,
        "quick": options.quick,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": _versions(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": options.threads,
        "device": options.device,
        "gpu": about_gpu,
        "isa": json.loads(torch.ops.cnnfast.cpu_info())["isa"],
        "dtype": "float32",
        "rivals": describe(options.rivals),
        "peak_gflops": {"start": peak},
        "copy_gb_per_s": about_gpu["copy_gb_per_s"] if about_gpu else copy_bandwidth(options.threads),
        "processor_share": {"start": share},
    }


def close(metadata: dict[str, Any]) -> None:
    """Adds what is known only when the run has ended: the peak again, and what happened in this process."""
    peak, share = probe(metadata["threads"])
    if metadata["device"] == "cuda":
        peak = gpu.matmul_rate(allow_tf32()) / 1e9
    else:
        metadata["copy_gb_per_s"] = max(metadata["copy_gb_per_s"], copy_bandwidth(metadata["threads"]))
    metadata["peak_gflops"]["end"], metadata["processor_share"]["end"] = peak, share
    # A rival may have brought an OpenMP runtime of its own; more than one makes everybody slower.
    files = info.openmp_runtimes()
    metadata["openmp_runtimes"] = None if files is None else [Path(file).name for file in files]
    metadata["fallbacks"] = cnnfast.fallbacks()
