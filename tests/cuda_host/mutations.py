"""Bugs to be seeded in the CUDA kernels, each of which the emulated tests must catch."""

from __future__ import annotations

import dataclasses

__all__ = ["MUTATIONS", "TESTS", "Mutation"]


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
WEIGHT = "kernels/implicit_gemm_backward_weight.cu"
CONV, GEMM, MAX, AVG, RELU = (
    f"kernels/{name}.cu" for name in ("conv2d", "implicit_gemm", "max_pool2d", "avg_pool2d", "relu")
)

# Which emulated tests exercise a file, as pytest's -k; the others, all of them.
_FUSED_TESTS = "conv2d_relu_max_pool2d or fused or without_input_gradient"
_GEMM_TESTS = "tiles or grouped or strided or transposed or lanes or slices_of_pixels"
TESTS = {
    FUSED: _FUSED_TESTS,
    SPARSE: _FUSED_TESTS,
    "kernels/direct_window.h": _FUSED_TESTS,
    "kernels/tile.h": _FUSED_TESTS,
    CONV: "conv2d- and not max_pool2d",
    GEMM: _GEMM_TESTS,
    WEIGHT: _GEMM_TESTS,
    MAX: "max_pool2d and not conv2d",
    AVG: "avg_pool2d",
    RELU: "relu and not conv2d",
}

MUTATIONS = [
    Mutation("block_sum: no barrier between warps' sums", "kernels/block_sum.h", BARRIER, ";"),
    Mutation("block_sum: a warp is left out", "kernels/block_sum.h", "blockDim.x / kWarp", "blockDim.x / kWarp - 1"),
    Mutation("block_sum: half of the lanes", "kernels/block_sum.h", "distance > 0", "distance > 1"),
    Mutation("block_sum: some lanes do not shuffle", "kernels/block_sum.h", "value += __shfl_down",
             "if (threadIdx.x % 2 == 0) value += __shfl_down"),
    Mutation("fused: no barrier after loading", FUSED, BARRIER, ";", 0),
    Mutation("fused: no barrier before storing", FUSED, BARRIER, ";", 1),
    Mutation("fused: a barrier for some threads only", FUSED, BARRIER, "if (threadIdx.x != 0) __syncthreads();", 0),
    Mutation("fused: the last channel is cut", FUSED, "channel >= K", "channel >= K - 1"),
    Mutation("fused: the later of equal values wins", FUSED, "window[i] > best", "window[i] >= best"),
    Mutation("fused: NaN does not win", FUSED, " || window[i] != window[i]", ""),
    Mutation("fused: a band begins a row late", FUSED, "2 * top - a.conv.pad_top", "2 * top + 1 - a.conv.pad_top"),
    Mutation("fused: the zeros of a band are the first band's", FUSED,
             "if (!whole) band(top).clear_outside(inputs);", ""),
    Mutation("direct_window: positions transposed", "kernels/direct_window.h",
             "patch[r + position / 2][t + position % 2]", "patch[r + position % 2][t + position / 2]"),
    Mutation("direct_window: the filters' next channel", "kernels/direct_window.h",
             "++t, ++w)", "++t, w += 1 + (c == 1))"),
    Mutation("filters: weights where biases are", "kernels/direct_window.h",
             "(1 + input * taps + tap)", "(input * taps + tap)"),
    Mutation("tile: the halo above is not zeroed", "kernels/tile.h", "if (h < 0 || h >= H", "if (h >= H"),
    Mutation("tile: a row too many", "kernels/tile.h", "min(H, top + rows) - first", "min(H + 1, top + rows) - first"),
    Mutation("tile: a row of the pitch, not of the plane", "kernels/tile.h",
             "to[c * plane + (first - top + row) * pitch", "to[c * rows * pitch + (first - top + row) * pitch"),
    Mutation("walk: begins a step late", "kernels/tile.h", "inner = thread_rank() % inners,",
             "inner = (thread_rank() + 1) % inners,"),
    Mutation("staged: words where the count is no multiple", "kernels/tile.h", "count % kWord == 0 && ", ""),
    Mutation("sparse: no barrier after clearing the map", SPARSE, BARRIER, ";", 0),
    Mutation("sparse: no barrier after loading", SPARSE, BARRIER, ";", 1),
    Mutation("sparse: no barrier before storing", SPARSE, BARRIER, ";", 2),
    Mutation("sparse: no barrier before the next image", SPARSE, BARRIER, ";", 3),
    Mutation("sparse: no barrier before the parts overwrite", SPARSE, BARRIER, ";", 4),
    Mutation("sparse: no barrier before the parts are added", SPARSE, BARRIER, ";", 5),
    Mutation("sparse: the map is not cleared", SPARSE, "shared.map[i] = 0", "(void)i"),
    Mutation("sparse: filters not turned round", SPARSE, "{w.c, w.n, -w.h, -w.w}", "{w.c, w.n, -w.w, -w.h}"),
    Mutation("sparse: a part is left out", SPARSE, "p < parts; ++p", "p < parts - (parts > 1); ++p"),
    Mutation("sparse: clipped gradients count", SPARSE, "int winner = codes[window];",
             "int winner = codes[window] & 3;"),
    Mutation("sparse: a slice is left out", SPARSE, "slice < slices", "slice < slices - (slices > 1)"),
    Mutation("sparse: the window's row is lost", SPARSE, "column -= Q) ++row", "column -= Q) row += column < Q"),
    Mutation("conv2d: a slice begins an element late", CONV, "terms * at.quotient / slices + threadIdx.x",
             "terms * at.quotient / slices + 1 + threadIdx.x"),
    Mutation("conv2d: groups read the first group's channels", CONV, "group.quotient * conv.C + c", "c"),
    Mutation("conv2d: one column too many", CONV, "w >= s.W", "w > s.W"),
    Mutation("conv2d: the second slice is left out", CONV, "slice < slices", "slice < 1"),
    Mutation("gemm: no barrier after the first step's loads", GEMM, BARRIER, ";", 0),
    Mutation("gemm: no barrier after a step's loads", GEMM, BARRIER, ";", 1),
    Mutation("gemm: one buffer instead of two", GEMM, "step % 2 * kDepth * kPitch;", "0 * kDepth * kPitch;"),
    Mutation("gemm: taps in the wrong order", GEMM, "tap_w = 0, ++tap_h", "tap_w = 0, tap_h += 0"),
    Mutation("gemm: a tile reads beyond the channels", GEMM, "c < conv.C && m < conv.M ?", "m < conv.M ?"),
    Mutation("gemm: no barrier before results are staged", GEMM, BARRIER, ";", 2),
    Mutation("gemm: no barrier before results are stored", GEMM, BARRIER, ";", 3),
    Mutation("gemm: channels beyond the last are stored", GEMM, "m >= conv.M || places", "places"),
    Mutation("gemm: the padding is not zero", GEMM, "w < conv_.w.size && c < conv_.C;", "c < conv_.C;"),
    Mutation("weight gemm: no barrier after the first step's loads", WEIGHT, BARRIER, ";", 0),
    Mutation("weight gemm: no barrier after a step's loads", WEIGHT, BARRIER, ";", 1),
    Mutation("weight gemm: one buffer instead of two", WEIGHT, "step % 2 * kDepth * kColumnPitch;",
             "0 * kDepth * kColumnPitch;"),
    Mutation("weight gemm: a slice reads into the next", WEIGHT, "first + filter_depth(i) < end && k < K", "k < K"),
    Mutation("weight gemm: the next image is forgotten", WEIGHT, "p = 0, ++n", "p = 0"),
    Mutation("weight gemm: the padding is not zero", WEIGHT, "h >= 0 && h < s.H && w >= 0 &&", "h < s.H && w >= 0 &&"),
    Mutation("max_pool2d: a window too few", MAX, "+ 1, outputs", ", outputs"),
    Mutation("max_pool2d: dilation forgotten", MAX, "h0 + r * s.dilation_h", "h0 + r"),
    Mutation("avg_pool2d: padding forgotten", AVG, "at.h * s.stride_h - s.pad_h", "at.h * s.stride_h"),
    Mutation("relu: the elements after the last pack", RELU, "for_each_index(count - rest", "for_each_index(0 * rest"),
    Mutation("relu_backward: NaN blocks the gradient", RELU, "load(output) <= 0 ? Compute<T>(0) : g",
             "load(output) > 0 ? g : Compute<T>(0)"),
    Mutation("image_index: H for W", "kernels/launch.h", "divide(c.quotient, W)", "divide(c.quotient, H)"),
]  # fmt: skip
