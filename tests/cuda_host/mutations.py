"""Bugs to be seeded in the CUDA kernels, each of which the emulated tests must catch."""

from __future__ import annotations

import dataclasses

__all__ = ["MUTATIONS", "Mutation"]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """``old``, which stands once in csrc/cuda/``file`` (or ``nth`` times before), becomes ``new``."""

    label: str
    file: str
    old: str
    new: str
    nth: int = 0

    def applied_to(self, text: str) -> str:
        parts = text.split(self.old)
        assert len(parts) > self.nth + 1, f"{self.label}: {self.file} has no {self.old!r} number {self.nth}"
        return self.old.join(parts[: self.nth + 1]) + self.new + self.old.join(parts[self.nth + 1 :])


BARRIER = "__syncthreads();"
FUSED, SPARSE = "kernels/conv2d_relu_max_pool2d.cu", "kernels/pool_sparse_backward.cu"
CONV, MAX, AVG, RELU = (f"kernels/{name}.cu" for name in ("conv2d", "max_pool2d", "avg_pool2d", "relu"))

MUTATIONS = [
    Mutation("block_sum: no barrier between warps' sums", "kernels/block_sum.h", BARRIER, ""),
    Mutation("block_sum: a warp is left out", "kernels/block_sum.h", "blockDim.x / kWarp", "blockDim.x / kWarp - 1"),
    Mutation("block_sum: half of the lanes", "kernels/block_sum.h", "distance > 0", "distance > 1"),
    Mutation("fused: no barrier after loading", FUSED, BARRIER, "", 0),
    Mutation("fused: no barrier before the next inputs", FUSED, BARRIER, "", 1),
    Mutation("fused: one barrier for some threads only", FUSED, BARRIER, "if (threadIdx.x != 0) __syncthreads();", 0),
    Mutation("fused: the last channel is cut", FUSED, "channel >= K", "channel >= K - 1"),
    Mutation("fused: positions transposed", FUSED, "patch[r + position / 2][t + position % 2]",
             "patch[r + position % 2][t + position / 2]"),
    Mutation("fused: the later of equal values wins", FUSED, "window[i] > best", "window[i] >= best"),
    Mutation("fused: ReLU before NaN", FUSED, "|| window[i] != window[i]", ""),
    Mutation("fused: a band begins a row late", FUSED, "2 * top - a.conv.pad_top", "2 * top + 1 - a.conv.pad_top"),
    Mutation("tile: the halo is not zeroed", "kernels/tile.h", "h >= 0 && h < H && w >= 0 && w < W",
             "h < H && w < W"),
    Mutation("tile: one row too many", "kernels/tile.h", "h < H", "h <= H"),
    Mutation("tile: channels and planes exchanged", "kernels/tile.h", "by_channel ? i % C : i / (rows * pitch)",
             "i % C"),
    Mutation("sparse: no barrier after loading", SPARSE, BARRIER, "", 1),
    Mutation("sparse: no barrier after the codes", SPARSE, BARRIER, "", 0),
    Mutation("sparse: no barrier before the next image", SPARSE, BARRIER, "", 2),
    Mutation("sparse: no barrier before the parts are added", SPARSE, BARRIER, "", 3),
    Mutation("sparse: the map is not cleared", SPARSE, "map[i] = 0", "map[i] = map[i]"),
    Mutation("sparse: filter not turned round", SPARSE, "filter[-(tap / kSize) * a.weight.stride.h",
             "filter[-(2 - tap / kSize) * a.weight.stride.h"),
    Mutation("sparse: a part is left out", SPARSE, "p < parts; ++p", "p < parts - (parts > 1); ++p"),
    Mutation("sparse: clipped gradients count", SPARSE, "if (winner >= 4) continue;\n        const float gradient",
             "const float gradient"),
    Mutation("sparse: the last slice is left out", SPARSE, "slice < slices", "slice < slices - (slices > 1)"),
    Mutation("conv2d: a slice begins an element late", CONV, "terms * at.quotient / slices + threadIdx.x",
             "terms * at.quotient / slices + 1 + threadIdx.x"),
    Mutation("conv2d: no barrier before the next sum", CONV, BARRIER, ""),
    Mutation("conv2d: groups read the first group's channels", CONV, "group.quotient * conv.C + c", "c"),
    Mutation("conv2d: one column too many", CONV, "w >= s.W", "w > s.W"),
    Mutation("max_pool2d: a window too few", MAX, "+ 1, outputs", ", outputs"),
    Mutation("max_pool2d: dilation forgotten", MAX, "h0 + r * s.dilation_h", "h0 + r"),
    Mutation("avg_pool2d: padding forgotten", AVG, "at.h * s.stride_h - s.pad_h", "at.h * s.stride_h"),
    Mutation("relu: the elements after the last pack", RELU, "for_each_index(count - rest", "for_each_index(0 * rest"),
    Mutation("relu_backward: NaN blocks the gradient", RELU, "load(output) <= 0 ? Compute<T>(0) : g",
             "load(output) > 0 ? g : Compute<T>(0)"),
    Mutation("image_index: H for W", "kernels/launch.h", "divide(c.quotient, W)", "divide(c.quotient, H)"),
]  # fmt: skip
