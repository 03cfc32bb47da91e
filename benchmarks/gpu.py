"""What timing on a GPU needs: events around each call, a cold L2 cache, and the device's own rates to compare with."""

from __future__ import annotations

from typing import Any

import torch

from .timing import Contestant, Stopwatch

__all__ = ["GpuStopwatch", "about", "copy_bandwidth", "matmul_rate"]

WARM_UP = 5


class GpuStopwatch(Stopwatch):
    """Times single calls on the device, each after everything that the L2 cache held has been overwritten.

    The host enqueues a call while the cache is being overwritten: what is timed is the device's work, and the host's
    only where it is slower than that. Layers in a network do not find their input in the cache of a benchmark's loop.
    """

    def __init__(self) -> None:
        super().__init__(synchronize=torch.cuda.synchronize)
        size = 2 * torch.cuda.get_device_properties().L2_cache_size
        self._cache = torch.empty(max(size, 1 << 20), dtype=torch.int8, device="cuda")

    def sample(self, contestant: Contestant, calls: int = 1) -> float:
        """Seconds per call over ``calls`` calls, without what lies between them."""
        if contestant.before is not None:
            contestant.before()
        pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(calls)]
        for start, end in pairs:
            self._cache.zero_()
            start.record()
            contestant.call()
            end.record()
        self.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / calls

    def calls_per_sample(self, contestant: Contestant) -> int:
        """Warms up. Events are exact enough for one call."""
        self.sample(contestant, WARM_UP)
        return 1


def _fastest(call: Any, repeats: int = 20) -> float:
    watch = GpuStopwatch()
    contestant = Contestant("", call, dict)
    watch.calls_per_sample(contestant)
    return min(watch.sample(contestant) for _ in range(repeats))


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy of 512 MB."""
    source = torch.zeros(1 << 29, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest(lambda: target.copy_(source))


def matmul_rate(allow_tf32: bool) -> float:
    """Operations per second of torch's own product of two 8192 x 8192 float32 matrices, with or without tf32."""
    size = 8192
    left, right = (torch.randn(size, size, device="cuda") for _ in range(2))
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allow_tf32 else "ieee"
    try:
        return 2 * size**3 / _fastest(lambda: left @ right, repeats=5)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def about() -> dict[str, Any]:
    """The device and what it reaches, for the metadata of a run."""
    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "copy_gb_per_s": copy_bandwidth() / 1e9,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "conv_fp32_precision": torch.backends.cudnn.conv.fp32_precision,
    }
