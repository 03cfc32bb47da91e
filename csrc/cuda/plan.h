// How work is cut into blocks and partial sums, from the shape alone: host-only plain data, so that bits depend neither
// on the device nor on how many multiprocessors it has.
#pragma once

#include "common/gather_conv.h"

namespace cnnfast {

// A sum over `terms` terms for each of `sums` results: how many partial sums each is cut into, and the threads of a
// block, which computes one. Few results need many slices to occupy a device; a thread is worth kTermsOfThread terms.
struct ReductionPlan {
  int64_t slices;
  int threads;
};
static constexpr ReductionPlan reduction_plan(int64_t sums, int64_t terms) {
  const int64_t kTermsOfThread = 8, kMostThreads = 256, kBlocks = 4096, kMostSlices = 64;
  const int64_t wanted = min(kMostSlices, max<int64_t>(1, kBlocks / max<int64_t>(1, sums)));
  const int64_t slices = max<int64_t>(1, min(wanted, terms / (kTermsOfThread * kMostThreads)));
  const int64_t threads = round_up(ceil_div(terms, slices * kTermsOfThread), int64_t{32});
  return {slices, static_cast<int>(max<int64_t>(32, min(threads, kMostThreads)))};
}

// Matrix products keep rows, columns and channels in 32 bits.
constexpr int64_t kMostOfGemm = int64_t{1} << 30;
static inline bool axis_takes_gemm(const GatherAxis& axis) {
  const int64_t reach = axis.taps * axis.spread, origin = max(axis.origin, -axis.origin);
  return axis.size < kMostOfGemm && reach < kMostOfGemm / 4 && origin < kMostOfGemm / 4 &&
         axis.outputs * axis.step < kMostOfGemm / 4;
}
// Whether one pays: below, tiles are mostly padding.
static inline bool takes_implicit_gemm(const GatherConv& conv) {
  return conv.M >= 16 && conv.C * conv.taps() >= 32 && conv.C * conv.taps() < kMostOfGemm && axis_takes_gemm(conv.h) &&
         axis_takes_gemm(conv.w);
}
// Tensor cores' kernels keep places in an image in 32 bits, too.
static inline bool takes_mma(const GatherConv& conv) {
  const int64_t kMostPadding = 8, padded = round_up(conv.C, kMostPadding);
  return conv.taps() * padded < kMostOfGemm && conv.h.size * conv.w.size < kMostOfGemm / (conv.G * padded);
}
// Output channels of a block: few, where there are few, or few blocks otherwise.
static inline int64_t mma_tile_channels(const GatherConv& conv) {
  const int64_t kBlocks = 512, kPixels = 128;
  const int64_t blocks = ceil_div(conv.M, int64_t{128}) * conv.G * ceil_div(conv.pixels(), kPixels);
  return conv.M <= 32 ? 32 : conv.M <= 64 || blocks < kBlocks ? 64 : 128;
}

// The weight gradient as a matrix product: tiles of a group's output channels and of its columns (channel and tap),
// and slices of the pixels.
struct WeightGradPlan {
  int64_t filters, columns;  // of a tile
  int64_t tiles_k, tiles_c, slices;
};
constexpr int kPlainFilters = 64, kPlainColumns = 128;

// `columns` in all, padded or not, in tiles of `filters` and `tile_columns`.
static inline WeightGradPlan weight_grad_plan(const Conv2dShape& s, int64_t columns, int64_t filters,
                                              int64_t tile_columns) {
  const int64_t kBlocks = 512, kMostSlices = 64, kPixelsOfSlice = 512, kMostFloats = int64_t{1} << 24;
  const int64_t tiles_k = ceil_div(s.K / s.G, filters), tiles_c = ceil_div(columns, tile_columns);
  const int64_t weights = s.K * (s.C / s.G) * s.R * s.S, pixels = s.N * s.P * s.Q;
  const int64_t wanted = ceil_div(kBlocks, tiles_k * tiles_c * s.G);
  const int64_t fits = max<int64_t>(1, min(pixels / kPixelsOfSlice, kMostFloats / max<int64_t>(1, weights)));
  return {filters, tile_columns, tiles_k, tiles_c, min(min(wanted, kMostSlices), fits)};
}
static inline WeightGradPlan plain_weight_grad_plan(const Conv2dShape& s) {
  return weight_grad_plan(s, s.C / s.G * s.R * s.S, kPlainFilters, kPlainColumns);
}
// `padded`: channels of a group, in whole chunks.
static inline WeightGradPlan mma_weight_grad_plan(const Conv2dShape& s, int64_t padded) {
  const int64_t columns = padded * s.R * s.S;
  return weight_grad_plan(s, columns, s.K / s.G <= 64 ? 64 : 128, columns <= 64 ? 64 : 128);
}
static inline bool takes_implicit_gemm_backward_weight(const Conv2dShape& s) {
  const GatherConv conv = forward_gather(s);
  return conv.M >= 16 && conv.C * conv.taps() >= 32 && axis_takes_gemm(conv.h) && axis_takes_gemm(conv.w);
}

// A band of an image in shared memory, padded, so that kernels need no bounds: channels `plane` elements apart, each
// `rows` rows of `pitch`. Even numbers let two neighbouring columns be read at once.
struct Tile {
  int64_t rows, pitch, plane;
};

// Shared memory of a block: what it has without asking for more, and what every device since Turing gives if asked.
constexpr int64_t kSharedBytes = 48 << 10, kMostSharedBytes = 64 << 10;

// What the fused kernels take, but for its size.
static inline bool fused_takes(const Conv2dShape& conv, const Pool2dShape& pool) {
  const bool two_by_two = pool.R == 2 && pool.S == 2 && pool.stride_h == 2 && pool.stride_w == 2 && pool.pad_h == 0 &&
                          pool.pad_w == 0 && pool.dilation_h == 1 && pool.dilation_w == 1 && 2 * pool.P <= conv.P &&
                          2 * pool.Q <= conv.Q;
  return two_by_two && conv.G == 1 && conv.C > 0 && conv.stride_h == 1 && conv.stride_w == 1 && conv.dilation_h == 1 &&
         conv.dilation_w == 1 && conv.R == conv.S && (conv.R == 3 || conv.R == 5) &&
         conv.H * conv.W < (int64_t{1} << 24);
}

// How many threads of a half-warp at most read pairs of floats from the same banks of shared memory, when neighbours
// take neighbouring windows of a tile with Q windows a row: 1 is without conflict.
static inline int64_t bank_conflicts(int64_t pitch, int64_t Q, int64_t windows) {
  const int64_t kHalfWarp = 16, kPairs = 16, kLooked = 8;
  int64_t worst = 1, row = 0, column = 0;
  for (int64_t first = 0; first < min(windows, kLooked * kHalfWarp); first += kHalfWarp) {
    int64_t ways[kPairs] = {};
    for (int64_t window = first; window < min(windows, first + kHalfWarp); ++window) {
      worst = max(worst, ++ways[(row + column) % kPairs]);
      if (++column == Q) column = 0, row += pitch;
    }
  }
  return worst;
}

// The even pitch, of at least `columns`, with the fewest conflicts, and of those the smallest.
static inline int64_t windows_pitch(int64_t columns, int64_t Q, int64_t windows) {
  const int64_t least = round_up(columns, int64_t{2}), kTried = 16;
  int64_t best = least, fewest = bank_conflicts(least, Q, windows);
  for (int64_t pitch = least + 2; pitch < least + kTried; pitch += 2) {
    const int64_t conflicts = bank_conflicts(pitch, Q, windows);
    if (conflicts < fewest) best = pitch, fewest = conflicts;
  }
  return best;
}

// Of blocks of `least` to `most` threads, whole warps, the one that leaves the fewest idle while it takes `items`
// pieces of work in rounds; of equals the largest.
static inline int busy_threads(int64_t items, int64_t least, int64_t most) {
  int64_t best = most;
  const auto slots = [&](int64_t threads) { return round_up(items, threads); };
  for (int64_t threads = most; threads >= least; threads -= 32)
    if (slots(threads) < slots(best)) best = threads;
  return static_cast<int>(best);
}

// The fused forward: a block computes `rows` pooled rows of all channels, or `images` whole images.
struct FusedPlan {
  bool fits;
  int64_t images, rows, bands;  // images and pooled rows of a block; bands of an image
  Tile input;                   // of one image's band
  int64_t weights, staged;      // floats of shared memory: of all weights; of a block's pooled values, or codes
  int64_t shared_bytes;
  int threads;
};
constexpr int64_t kFusedChannels = 4;  // output channels of a thread

static inline FusedPlan fused_plan(const Conv2dShape& conv, const Pool2dShape& pool) {
  FusedPlan plan{};
  if (!fused_takes(conv, pool)) return plan;
  plan.weights = round_up(conv.K, kFusedChannels) * (1 + conv.C * conv.R * conv.S);
  const int64_t columns = 2 * pool.Q + conv.S - 1, room = kSharedBytes - plan.weights * 4;
  const auto fit = [&](int64_t rows, int64_t pitch) {  // bytes of an image's band
    plan.rows = rows;
    plan.input = {2 * rows + conv.R - 1, pitch, (2 * rows + conv.R - 1) * pitch};
    plan.staged = rows * pool.Q * conv.K;
    return conv.C * plan.input.plane * 4 + round_up(plan.staged, int64_t{4}) * 5;
  };
  int64_t rows = pool.P;
  while (rows > 1 && fit(rows, round_up(columns, int64_t{2})) > room) rows = (rows + 1) / 2;
  int64_t bytes = fit(rows, windows_pitch(columns, pool.Q, rows * pool.Q));
  if (bytes > room) bytes = fit(rows, round_up(columns, int64_t{2}));
  if (bytes > room) return plan;
  plan.bands = ceil_div(pool.P, plan.rows);
  // Whole images side by side, until a block has enough for its threads.
  const int64_t kItems = 1024, items = plan.rows * pool.Q * ceil_div(conv.K, kFusedChannels);
  plan.images = plan.bands > 1 ? 1 : max<int64_t>(1, min(min(kItems / items, room / bytes), conv.N));
  plan.shared_bytes = plan.weights * 4 + plan.images * bytes;
  plan.threads = busy_threads(plan.images * items, 128, 384);
  plan.fits = true;
  return plan;
}

// The pool-sparse backward: a block takes a slice of the images, one at a time, and holds their sums of grad_weight.
struct PoolSparsePlan {
  bool fits;
  int64_t slices;
  int64_t parts;    // of an image's windows, summed apart: one (k, c) pair of weights keeps that many threads busy
  Tile input, map;  // of one image; of the gradient of its un-pooled map, for grad_input
  int64_t input_floats, map_floats, filter_floats, staged_floats, gradient_floats;  // in shared memory, in this order
  int64_t shared_bytes;
  int threads;
};
constexpr int64_t kGradChannels = 2;  // input channels of a thread

static inline PoolSparsePlan pool_sparse_plan(const Conv2dShape& conv, const Pool2dShape& pool, bool want_input) {
  PoolSparsePlan plan{};
  const int64_t kMostThreads = 512, kMostSlices = 264, pairs = conv.K * conv.C;
  if (!fused_takes(conv, pool) || max(conv.pad_top, conv.pad_bottom) >= conv.R ||
      max(conv.pad_left, conv.pad_right) >= conv.S || pairs > kMostThreads)
    return plan;
  plan.slices = min(conv.N, kMostSlices);
  plan.parts = max<int64_t>(1, 256 / pairs);
  const int64_t windows = pool.P * pool.Q, sums = conv.K * (conv.C * conv.R * conv.S + 1);
  // Threads side by side read side by side where channels are an odd number of elements apart.
  const int64_t rows = 2 * pool.P + conv.R - 1, pitch = 2 * pool.Q + conv.S - 1;
  plan.input = {rows, pitch, rows * pitch | 1};
  plan.input_floats = round_up(conv.C * plan.input.plane, int64_t{4});
  if (want_input) {
    const int64_t columns = ceil_div(conv.W, int64_t{2}), squares = ceil_div(conv.H, int64_t{2}) * columns;
    const int64_t map_rows = round_up(conv.H, int64_t{2}) + conv.R - 1;
    const int64_t map_pitch = windows_pitch(2 * columns + conv.S - 1, columns, squares);
    plan.map = {map_rows, map_pitch, map_rows * map_pitch};
    plan.map_floats = round_up(conv.K * plan.map.plane, int64_t{4});
    plan.filter_floats = round_up(conv.C, kGradChannels) * (1 + conv.K * conv.R * conv.S);
    plan.filter_floats = round_up(plan.filter_floats, int64_t{4});
    plan.staged_floats = round_up(conv.C * conv.H * conv.W, int64_t{4});
  } else {
    plan.gradient_floats = conv.K * windows;
  }
  const int64_t floats =
      plan.input_floats + plan.map_floats + plan.filter_floats + plan.staged_floats + plan.gradient_floats;
  plan.shared_bytes = max(floats * 4 + conv.K * windows, sums * plan.parts * 4);
  plan.threads = static_cast<int>(round_up(pairs * plan.parts, int64_t{32}));
  plan.fits = plan.shared_bytes <= kMostSharedBytes;
  return plan;
}

}  // namespace cnnfast
