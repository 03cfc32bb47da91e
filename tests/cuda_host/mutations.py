"""Bugs to be seeded in the CUDA kernels, each of which the emulated tests must catch."""

from __future__ import annotations

import dataclasses

__all__ = ["BARRIER", "MUTATIONS", "TESTS", "Mutation"]


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
        assert self.old == BARRIER or len(parts) == 2, f"{self.label}: {self.file} has {self.old!r} more than once"
        return self.old.join(parts[: self.nth + 1]) + self.new + self.old.join(parts[self.nth + 1 :])


BARRIER = "__syncthreads();"
FUSED, SPARSE = "kernels/conv2d_relu_max_pool2d.cu", "kernels/pool_sparse_backward.cu"
WEIGHT = "kernels/implicit_gemm_backward_weight.cu"
MMA, MMA_WEIGHT = "kernels/implicit_gemm_mma.cu", "kernels/implicit_gemm_mma_backward_weight.cu"
MMA_TILE, CHUNKS = "kernels/mma_tile.h", "kernels/chunks.cu"
AUGMENT, PIXELS = "kernels/augment.cu", "kernels/pixels.h"
DEPTHWISE, GEMM_TILE = "kernels/depthwise_conv2d.cu", "kernels/gemm_tile.h"
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
    GEMM_TILE: _GEMM_TESTS,
    WEIGHT: _GEMM_TESTS,
    MMA: "tensor_cores or tf32 or large",
    MMA_WEIGHT: "tensor_cores or tf32",
    MMA_TILE: "tensor_cores or tf32",
    CHUNKS: "tensor_cores or tf32",
    DEPTHWISE: "depthwise",
    MAX: "max_pool2d and not conv2d",
    AVG: "avg_pool2d",
    AUGMENT: "augment",
    PIXELS: "augment",
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
    Mutation("gemm: no barrier after the first step's loads", GEMM_TILE, BARRIER, ";", 0),
    Mutation("gemm: no barrier after a step's loads", GEMM_TILE, BARRIER, ";", 1),
    Mutation("gemm: one buffer instead of two", GEMM_TILE, "put(static_cast<int>((step + 1) % 2))",
             "put(static_cast<int>(step % 2))"),
    Mutation("gemm: taps in the wrong order", GEMM, "tap_w = 0, ++tap_h", "tap_w = 0, tap_h += 0"),
    Mutation("gemm: a tile reads beyond the channels", GEMM, "c0 + at / kM < static_cast<int>(conv.C) && at", "at"),
    Mutation("gemm: no barrier before results are staged", GEMM, BARRIER, ";", 0),
    Mutation("gemm: no barrier before results are stored", GEMM, BARRIER, ";", 1),
    Mutation("gemm: channels beyond the last are stored", GEMM, "m >= conv.M || places", "places"),
    Mutation("gemm: the padding is not zero", GEMM, "w < static_cast<int>(conv_.w.size) &&", "true &&"),
    Mutation("weight gemm: a slice reads into the next", WEIGHT, "first + filter_depth(i) < end && k < K", "k < K"),
    Mutation("weight gemm: the next image is forgotten", WEIGHT, "p = 0, ++n", "p = 0"),
    Mutation("weight gemm: the padding is not zero", WEIGHT, "h >= 0 && h < s.H && w >= 0 &&", "h < s.H && w >= 0 &&"),
    Mutation("mma: no barrier before a stage is read and filled", MMA_TILE, BARRIER, ";"),
    Mutation("mma: waits for a group too few", MMA_TILE, "kStages - 2>()", "kStages - 1>()"),
    Mutation("mma: empty groups are not closed", MMA_TILE, "    commit_copies();\n    compute",
             "    if (step + kStages - 1 < steps) commit_copies();\n    compute"),
    Mutation("mma: the ring is a stage short", MMA_TILE, "++filled == kStages", "++filled == kStages - 1"),
    Mutation("mma: the second half of a pair is the first", MMA_TILE, "b[2], b[3]", "b[0], b[1]"),
    Mutation("mma: rows of sums interleaved", MMA_TILE, "8 * (k / 2) + lane / 4", "k / 2 + lane / 4 * 2"),
    Mutation("mma: floats are not rounded to tf32", MMA_TILE, "r[i] = to_tf32(r[i])", "r[i] = r[i]"),
    Mutation("mma: weights are not rounded to tf32", MMA, "bits_float(to_tf32(float_bits(value)))", "value"),
    Mutation("mma: registers 1 and 2 of A swapped", MMA, "lane % 16, 2 * half + lane / 16",
             "lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2"),
    Mutation("mma: registers 1 and 2 of B swapped", MMA, "lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2",
             "lane % 16, 2 * half + lane / 16"),
    Mutation("mma: the second half of a step is the first", MMA, "2 * half + lane / 8 % 2", "lane / 8 % 2"),
    Mutation("mma: chunks are written where they are not read", MMA, "weights + place(row_ + i * kRowsAtOnce, column_)",
             "weights + place(row_ + i * kRowsAtOnce, column_ ^ 1)"),
    Mutation("mma: the halo is not zero", MMA, "exists && h >= 0 &&", "exists &&"),
    Mutation("mma: rows beyond the last weights", MMA, "i * kRowsAtOnce < channels_", "i * kRowsAtOnce <= channels_"),
    Mutation("mma: taps beyond the last", MMA, "const bool exists = tap_h_ < static_cast<int>(conv_.h.taps)",
             "const bool exists = tap_h_ <= static_cast<int>(conv_.h.taps)"),
    Mutation("mma: the padding of channels is not zero", MMA, "c.remainder < conv.C", "c.remainder <= conv.C"),
    Mutation("mma: no barrier before sums are staged", MMA, BARRIER, ";", 0),
    Mutation("mma: no barrier before sums are stored", MMA, BARRIER, ";", 1),
    Mutation("mma: channels beyond the last are stored", MMA, "m >= conv.M || places", "places"),
    Mutation("weight mma: matrices 1 and 2 of A swapped", MMA_WEIGHT,
             "place(row + lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2)",
             "place(row + lane / 8 % 2 * 8 + lane % 8, first / 8 + lane / 16)"),
    Mutation("weight mma: floats of A swapped", MMA_WEIGHT, "row + i / 2 * 4 + lane % 4, first + i % 2 * 8 + lane / 4",
             "row + i % 2 * 4 + lane % 4, first + i / 2 * 8 + lane / 4"),
    Mutation("weight mma: floats are not rounded to tf32", MMA_WEIGHT, "return to_tf32(bits)", "return bits"),
    Mutation("weight mma: a slice reads into the next", MMA_WEIGHT, "has_filter && first + row < end", "has_filter"),
    Mutation("weight mma: the halo is not zero", MMA_WEIGHT, "first + row < end && h >= 0 &&", "first + row < end &&"),
    Mutation("weight mma: the next image is forgotten", MMA_WEIGHT, "p -= P, ++n", "p -= P"),
    Mutation("weight mma: the step's rows are forgotten", MMA_WEIGHT, "p += by.p", "p += 0 * by.p"),
    Mutation("weight mma: padding channels are stored", MMA_WEIGHT, " && channel.remainder < C", ""),
    Mutation("chunks: no barrier", CHUNKS, BARRIER, ";"),
    Mutation("chunks: the padding is not zero", CHUNKS, "group.remainder < C)", "group.remainder <= C)"),
    Mutation("chunks: groups without their padding", CHUNKS, "divide(channel, padded)", "divide(channel, C)"),
    Mutation("depthwise: no barrier before a sum is gathered", DEPTHWISE, BARRIER, ";", 0),
    Mutation("depthwise: no barrier before lanes are added", DEPTHWISE, BARRIER, ";", 1),
    Mutation("depthwise: a lane's first share alone", DEPTHWISE, "i < kThreads; i +=", "i < kLanes; i +="),
    Mutation("depthwise: the strip's rows turned round", DEPTHWISE, "filter[(place - i) % kTaps][j]",
             "filter[(kTaps - 1 - (place - i)) % kTaps][j]"),
    Mutation("depthwise: a row too many", DEPTHWISE, "first + i < along.outputs", "first + i <= along.outputs"),
    Mutation("depthwise: the halo is not zero", DEPTHWISE, "place >= 0 && place < along.size", "place < along.size"),
    Mutation("depthwise: the weight's halo counts", DEPTHWISE, "h < s.H && w >= 0 && w < s.W", "h < s.H && w < s.W"),
    Mutation("max_pool2d: a window too few", MAX, "+ 1, outputs", ", outputs"),
    Mutation("max_pool2d: dilation forgotten", MAX, "h0 + r * s.dilation_h", "h0 + r"),
    Mutation("avg_pool2d: padding forgotten", AVG, "at.h * s.stride_h - s.pad_h", "at.h * s.stride_h"),
    Mutation("augment: no barrier after the maps are found", AUGMENT, BARRIER, ";", 0),
    Mutation("augment: no barrier before the next image's maps", AUGMENT, BARRIER, ";", 1),
    Mutation("augment_gray_mean: the next sums in their place", AUGMENT, "place = kWarps - place", "place = 0"),
    Mutation("augment_gray_mean: the mean of another image", AUGMENT, "means[n] =", "means[pass.N - 1 - n] ="),
    Mutation("augment: an edge that the last pixel's neighbour crosses", AUGMENT, "w < pass.W", "w <= pass.W"),
    Mutation("augment: noise of another channel", AUGMENT, "static_cast<uint32_t>(channel + i)", "0"),
    Mutation("augment: words that two elements share", PIXELS, "place >= 2 *", "place >= 3 *"),
    Mutation("relu: the elements after the last pack", RELU, "for_each_index(count - rest", "for_each_index(0 * rest"),
    Mutation("relu_backward: NaN blocks the gradient", RELU, "load(output) <= 0 ? Compute<T>(0) : g",
             "load(output) > 0 ? g : Compute<T>(0)"),
    Mutation("mma: places of 32 bits", MMA, "? at.n * s.n + at.h", "? static_cast<int>(at.n * s.n) + at.h"),
    Mutation("for_each_index: indices of 32 bits", "kernels/launch.h", "int64_t i = static_cast<int64_t>(blockIdx.x)",
             "int i = static_cast<int64_t>(blockIdx.x)"),
    Mutation("image_index: H for W", "kernels/launch.h", "divide(c.quotient, W)", "divide(c.quotient, H)"),
]  # fmt: skip
