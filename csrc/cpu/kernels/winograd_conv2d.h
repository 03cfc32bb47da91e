// Convolution by Winograd F(4x4, 3x3): 36 multiplications per channel pair for 16 outputs, instead of 144.
//
// The products are one matrix product per element of a tile, [tiles, C] x [C, K]; the inverse transform, vectorised
// over channels, writes bias, ReLU and the output.
//
// The transforms turn an infinity into NaN and spread a NaN over its tile: where a result is not finite, the caller is
// told, and another algorithm computes them all.
#pragma once

#include "cpu/kernels/winograd_tiles.h"

namespace cnnfast::CNNFAST_ISA {

// Depth of a product at most: a panel of weights stays in L1.
constexpr int64_t kWinogradDepth = 256;

constexpr int kKernelTaps = kWinogradTaps * kWinogradTaps;

// The nine taps of kLanes output channels; beyond `lanes` they are zero.
CNNFAST_INLINE void load_taps(const float* from, const GatherWeight<const float>& weight, int64_t lanes,
                              Vec<float> (&g)[kKernelTaps]) {
  constexpr int kLane = kLanes<float>;
  if (kLane < kKernelTaps && lanes == kLane && weight.s == 1 && weight.r == kWinogradTaps) {
    Vec<float> first[kLane];
    load_transposed(from, weight.m, first);
    unroll<kLane>([&](auto i) CNNFAST_INLINE_LAMBDA { g[i.value] = first[i.value]; });
    for (int tap = kLane; tap < kKernelTaps; ++tap) g[tap] = load_strided(from + tap, weight.m);
    return;
  }
  float taps[kKernelTaps][kLane] = {};
  for (int64_t lane = 0; lane < lanes; ++lane, from += weight.m)
    for (int tap = 0; tap < kKernelTaps; ++tap)
      taps[tap][lane] = from[tap / kWinogradTaps * weight.r + tap % kWinogradTaps * weight.s];
  for (int tap = 0; tap < kKernelTaps; ++tap) g[tap] = load_vec(taps[tap]);
}

// Pitch of an element in a block of `depth` transformed weights; as TilePlanes::plane, no multiple of 4 KB.
static inline int64_t element_pitch(int64_t depth) { return depth * kPanelWidth<float> + 16; }

// G g G^T of one panel of output channels and source channels [c, c + depth), as [element][depth][kPanelWidth], zero
// beyond K.
static void transform_weight(const WinogradConv& conv, const GatherWeight<const float>& weight, int64_t panel,
                             int64_t c, int64_t depth, float* transformed) {
  constexpr int64_t kLane = kLanes<float>, kWidth = kPanelWidth<float>;
  const int64_t pitch = element_pitch(depth);
  for (int64_t end = c + depth; c < end; ++c, transformed += kWidth) {
    for (int64_t v = 0; v < kWidth; v += kLane) {
      const int64_t k = panel * kWidth + v, lanes = max(min(kLane, conv.K - k), int64_t{0});
      Vec<float> g[kKernelTaps];
      load_taps(weight.data + k * weight.m + c * weight.c, weight, lanes, g);
      transform_both_ways<WinogradTile::filter(), true, Vec<float>>(
          [&](int i, int j) CNNFAST_INLINE_LAMBDA { return g[i * kWinogradTaps + j]; },
          [&](int i, int j, Vec<float> value)
              CNNFAST_INLINE_LAMBDA { store_vec(transformed + (i * kWinogradSize + j) * pitch + v, value); });
    }
  }
}

// Blocks of source channels that are summed at a time.
struct DepthBlocks {
  int64_t depth, count;
  explicit DepthBlocks(int64_t C) : depth(even_part(C, kWinogradDepth)), count(ceil_div(C, depth)) {}
};

// Packed weights: [panel][block of source channels][element][channel][kPanelWidth]. Where a block begins:
static inline int64_t packed_block(const WinogradConv& conv, int64_t panel, int64_t block) {
  const DepthBlocks blocks(conv.C);
  return (panel * blocks.count + block) * kWinogradElements * element_pitch(blocks.depth);
}

static void winograd_pack_weight(const WinogradConv& conv, GatherWeight<const float> weight, float* packed,
                                 int64_t panel) {
  const DepthBlocks blocks(conv.C);
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t c = block * blocks.depth;
    transform_weight(conv, weight, panel, c, min(blocks.depth, conv.C - c), packed + packed_block(conv, panel, block));
  }
}

// products[tiles, a panel] (+)= transformed[tiles, depth] * weight[depth, the panel], of one element. `next` is what
// will be multiplied next: its weights are fetched meanwhile, for they come from far away and are used at once.
static void multiply_element(int64_t tiles, int64_t depth, const float* v, int64_t v_pitch, const float* u, float* m,
                             int64_t m_pitch, bool accumulate, const float* next) {
  constexpr int64_t kWidth = kPanelWidth<float>, kLine = 64 / sizeof(float);
  const RowPanels rows(tiles);
  for (int64_t row = 0; row < rows.count; ++row) {
    for (int64_t i = row * depth / rows.count * kWidth; i < (row + 1) * depth / rows.count * kWidth; i += kLine)
      __builtin_prefetch(next + i, 0, 2);
    const int64_t t = rows.begin(row);
    with_constant<1, kTileRows>(rows.begin(row + 1) - t, [&](auto count) {
      multiply_tile<float, count.value, kTileVectors>(depth, v + t * v_pitch, v_pitch, 1, u, kWidth, m + t * m_pitch,
                                                      m_pitch, accumulate);
    });
  }
}

// With packed weights a task is an element and some panels; else a panel, whose weights it transforms for itself.
static void winograd_multiply(const WinogradJob& job, int64_t chunk, int64_t task, const float* transformed,
                              float* products, float* scratch) {
  constexpr int64_t kWidth = kPanelWidth<float>;
  const WinogradConv& conv = job.conv;
  const int64_t tiles = chunk_tiles(job.plan, chunk);
  const TilePlanes in(conv.C, job.plan.chunk_tiles), out(conv.K, job.plan.chunk_tiles);
  const DepthBlocks blocks(conv.C);
  const bool packed = job.plan.packed_weight > 0;
  const ProductTask part(job.plan, task);
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t c = block * blocks.depth, depth = min(blocks.depth, conv.C - c), pitch = element_pitch(depth);
    for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
      const float* weight = job.packed_weight + packed_block(conv, panel, block);
      if (!packed) {
        transform_weight(conv, job.weight, panel, c, depth, scratch);
        weight = scratch;
      }
      for (int64_t element = part.element_begin; element < part.element_end; ++element) {
        const float* u = weight + element * pitch;
        const float* next = panel + 1 < part.panel_end ? u + packed_block(conv, 1, 0) : u + pitch;
        multiply_element(tiles, depth, transformed + element * in.plane + c, in.pitch, u,
                         products + element * out.plane + panel * kWidth, out.pitch, c > 0, next);
      }
    }
  }
}

// Where a tile's outputs go: `channels` from k, rows and columns that exist.
struct TileOutput {
  float* data;
  Strides stride;
  int64_t channels, rows, columns;
};

static void write_tile_output(const Vec<float> (&y)[kWinogradOutputs][kWinogradOutputs], const TileOutput& out) {
  const bool whole = out.channels == kLanes<float>;
  if (whole && out.stride.c == 1) {
    for (int64_t i = 0; i < out.rows; ++i)
      for (int64_t j = 0; j < out.columns; ++j) store_vec(out.data + i * out.stride.h + j * out.stride.w, y[i][j]);
  } else if (whole && out.stride.w == 1 && out.columns == kWinogradOutputs) {
    for (int64_t i = 0; i < out.rows; ++i) store_transposed(y[i], out.data + i * out.stride.h, out.stride.c);
  } else {
    for (int64_t i = 0; i < out.rows; ++i)
      for (int64_t j = 0; j < out.columns; ++j)
        for (int64_t lane = 0; lane < out.channels; ++lane)
          out.data[i * out.stride.h + j * out.stride.w + lane * out.stride.c] = y[i][j][lane];
  }
}

// False if an output is not finite.
static bool winograd_transform_output(const WinogradJob& job, int64_t chunk, int64_t task, const float* products) {
  constexpr int64_t kLane = kLanes<float>;
  const WinogradConv& conv = job.conv;
  const Strip strip(job.plan, chunk, task / job.plan.product_tasks);
  const TilePlanes planes(conv.K, job.plan.chunk_tiles);
  const int64_t k_begin = task % job.plan.product_tasks * kTransformChannels;
  const int64_t k_end = min(k_begin + kTransformChannels, conv.K), p = strip.row * kWinogradOutputs;
  Vec<float> probe{};
  const Vec<float> floor = broadcast(job.relu ? 0.0f : -__builtin_inff());
  for (int64_t block = k_begin; block < k_end; block += kChannelBlock) {
    for (int64_t t = 0; t < strip.tiles; ++t) {
      const int64_t q = (strip.column + t) * kWinogradOutputs;
      for (int64_t k = block; k < min(block + kChannelBlock, k_end); k += kLane) {
        const TileOutput out{job.output.at(strip.n, k, p, q), job.output.stride, min(kLane, k_end - k),
                             min<int64_t>(kWinogradOutputs, conv.P - p), min<int64_t>(kWinogradOutputs, conv.Q - q)};
        const Vec<float> bias = job.bias != nullptr ? load_partial(job.bias + k, out.channels) : Vec<float>{};
        const float* m = products + (strip.first + t) * planes.pitch + k;
        Vec<float> y[kWinogradOutputs][kWinogradOutputs];
        transform_both_ways<WinogradTile::output(), false, Vec<float>>(
            [&](int i, int j) CNNFAST_INLINE_LAMBDA { return load_vec(m + (i * kWinogradSize + j) * planes.plane); },
            [&](int i, int j, Vec<float> value) CNNFAST_INLINE_LAMBDA {
              probe += value - value;  // zero, unless it is not finite
              y[i][j] = max_or_second(floor, value + bias);
            });
        write_tile_output(y, out);
      }
    }
  }
  return !any_lane(probe != Vec<float>{});
}

static bool winograd_plan(const WinogradConv& conv, WinogradPlan* plan) {
  constexpr int64_t kFewTiles = 96;
  if (conv.C < 16 || conv.K < 16 || conv.P < 3 || conv.Q < 3 || conv.N == 0) return false;
  cut_tiles(conv, kFewTiles, plan);
  const DepthBlocks blocks(conv.C);
  // Weights that only one chunk uses are transformed by the task that uses them, and stay in its cache.
  plan->packed_weight = plan->chunks > 1 ? packed_block(conv, plan->weight_panels, 0) : 0;
  plan->multiply_floats = plan->chunks > 1 ? 0 : kWinogradElements * element_pitch(blocks.depth);
  return true;
}

}  // namespace cnnfast::CNNFAST_ISA
