// Convolution by Winograd F(4x4, 3x3): 36 multiplications per channel pair for 16 outputs, instead of 144.
//
// The products are one matrix product per element of a tile, [tiles, C] x [C, K]; the inverse transform, vectorised
// over channels, writes bias, ReLU and the output or, of 2x2 windows, the largest of the output: a tile is four of
// them.
//
// The transforms turn an infinity into NaN and spread a NaN over its tile: where a result is not finite, the caller is
// told, and another algorithm computes them all.
#pragma once

#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/winograd_tiles.h"

namespace cnnfast::CNNFAST_ISA {

// Depth of a product at most: a panel of weights stays in L1.
constexpr int64_t kWinogradDepth = 256;
// Products that are summed in one chain. Rounding grows with a chain's length, and the transforms multiply it: with
// chains of 64, the result's error is less than half of that with 256 (docs/lab-notes.md).
constexpr int64_t kWinogradChain = 64;

constexpr int kKernelTaps = kWinogradTaps * kWinogradTaps;
constexpr int64_t kTapsAhead = 16;  // source channels whose weights are asked for ahead of their transform

// Source channels whose kernels are loaded together where they are neighbours (weights in channels_last).
constexpr int kTapChannels = 4;

// Calls body(c, Constant{how many from c on}) for all source channels: kTapChannels of them, or 1.
template <class Body>
CNNFAST_INLINE void for_each_kernel(int64_t channels, bool neighbours, const Body& body) {
  int64_t c = 0;
  for (; neighbours && c + kTapChannels <= channels; c += kTapChannels) body(c, Constant<kTapChannels>{});
  for (; c < channels; ++c) body(c, Constant<1>{});
}

// The nine taps of kLanes output channels, for each of kChannels source channels; beyond `lanes` they are zero.
template <int kChannels>
CNNFAST_INLINE void load_taps(const float* from, const GatherWeight<const float>& weight, int64_t lanes,
                              Vec<float> (&g)[kChannels][kKernelTaps]) {
  constexpr int kLane = kLanes<float>;
  const auto place = [&](int tap) { return tap / kWinogradTaps * weight.r + tap % kWinogradTaps * weight.s; };
  if (lanes == kLane && weight.m == 1) {
    unroll<kChannels * kKernelTaps>([&](auto i) CNNFAST_INLINE_LAMBDA {
      constexpr int c = i.value / kKernelTaps, tap = i.value % kKernelTaps;
      g[c][tap] = load_vec(from + c * weight.c + place(tap));
    });
  } else if (kChannels == kTapChannels && lanes == kLane && weight.c == 1) {
    unroll<kKernelTaps>([&](auto tap) CNNFAST_INLINE_LAMBDA {
      Vec<float> channel[kTapChannels];
      load_transposed<kTapChannels>(from + place(tap.value), weight.m, channel);
      unroll<kChannels>([&](auto c) CNNFAST_INLINE_LAMBDA { g[c.value][tap.value] = channel[c.value]; });
    });
  } else if (kChannels == 1 && lanes == kLane && weight.s == 1 && weight.r == kWinogradTaps) {
    Vec<float> last[4];
    load_transposed<8>(from, weight.m, g[0]);
    load_transposed<4>(from + kKernelTaps - 4, weight.m, last);
    g[0][kKernelTaps - 1] = last[3];
  } else {
    for (int c = 0; c < kChannels; ++c) {
      float taps[kKernelTaps][kLane] = {};
      for (int64_t lane = 0; lane < lanes; ++lane)
        for (int tap = 0; tap < kKernelTaps; ++tap) taps[tap][lane] = from[lane * weight.m + c * weight.c + place(tap)];
      for (int tap = 0; tap < kKernelTaps; ++tap) g[c][tap] = load_vec(taps[tap]);
    }
  }
}

// Pitch of an element in a block of `depth` transformed weights; as TilePlanes::plane, no multiple of 4 KB.
static inline int64_t element_pitch(int64_t depth) { return depth * kPanelWidth<float> + 16; }

// G g G^T of one panel of output channels and source channels [first, first + depth), as [element][depth][kPanelWidth],
// zero beyond K.
static void transform_weight(const WinogradConv& conv, const GatherWeight<const float>& weight, int64_t panel,
                             int64_t first, int64_t depth, float* transformed) {
  constexpr int64_t kLane = kLanes<float>, kWidth = kPanelWidth<float>;
  const int64_t pitch = element_pitch(depth);
  for_each_kernel(depth, weight.c == 1, [&](int64_t c, auto channels) {
    for (int64_t v = 0; v < kWidth; v += kLane) {
      const int64_t k = panel * kWidth + v, lanes = max(min(kLane, conv.K - k), int64_t{0});
      const float* from = weight.data + k * weight.m + (first + c) * weight.c;
      // More rows than the processor follows, pages apart.
      if (weight.c > 1 && weight.m > 1 && lanes == kLane && first + c + kTapsAhead < conv.C) {
        for (int64_t lane = 0; lane < kLane; ++lane)
          __builtin_prefetch(from + lane * weight.m + kTapsAhead * weight.c, 0, 3);
      }
      Vec<float> g[channels.value][kKernelTaps];
      load_taps<channels.value>(from, weight, lanes, g);
      unroll<channels.value>([&](auto channel) CNNFAST_INLINE_LAMBDA {
        float* to = transformed + (c + channel.value) * kWidth + v;
        transform_both_ways<WinogradTile::filter(), true, Vec<float>>(
            [&](int i, int j) CNNFAST_INLINE_LAMBDA { return g[channel.value][i * kWinogradTaps + j]; },
            [&](int i, int j, Vec<float> value)
                CNNFAST_INLINE_LAMBDA { store_vec(to + (i * kWinogradSize + j) * pitch, value); });
      });
    }
  });
}

// Blocks of source channels that are summed at a time.
struct DepthBlocks {
  int64_t C, depth, count;
  explicit DepthBlocks(int64_t C) : C(C), depth(even_part(C, kWinogradDepth)), count(ceil_div(C, depth)) {}
  int64_t depth_of(int64_t block) const { return min(depth, C - block * depth); }
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
    transform_weight(conv, weight, panel, block * blocks.depth, blocks.depth_of(block),
                     packed + packed_block(conv, panel, block));
  }
}

// products[tiles, a panel] (+)= transformed[tiles, depth] * weight[depth, the panel], of one element. `next` is what
// will be multiplied next: its weights are fetched meanwhile (past the last, whatever lies there), for they come from
// far away and are used at once.
static void multiply_element(int64_t tiles, int64_t depth, const float* v, int64_t v_pitch, const float* u, float* m,
                             int64_t m_pitch, bool accumulate, const float* next) {
  constexpr int64_t kWidth = kPanelWidth<float>, kLine = 64 / sizeof(float);
  const int64_t chain = even_part(depth, kWinogradChain);
  const RowPanels rows(tiles);
  for (int64_t row = 0; row < rows.count; ++row) {
    for (int64_t i = row * depth / rows.count * kWidth; i < (row + 1) * depth / rows.count * kWidth; i += kLine)
      __builtin_prefetch(next + i, 0, 2);
    const int64_t t = rows.begin(row);
    with_constant<1, kTileRows>(rows.rows(row), [&](auto count) {
      for (int64_t k = 0; k < depth; k += chain) {
        multiply_tile<float, count.value, kTileVectors>(min(chain, depth - k), v + t * v_pitch + k, v_pitch, 1,
                                                        u + k * kWidth, kWidth, m + t * m_pitch, m_pitch,
                                                        accumulate || k > 0);
      }
    });
  }
}

// Products [element][tile][channel of the part], of packed weights or of such as are transformed here, panel by panel.
static void multiply_chunk(const WinogradJob& job, const Chunk& chunk, const PlanPart& part,
                           const WinogradMemory& memory) {
  constexpr int64_t kWidth = kPanelWidth<float>;
  const WinogradConv& conv = job.conv;
  const TilePlanes in(conv.C, job.plan.chunk_tiles), out(job.plan.part_panels * kWidth, job.plan.chunk_tiles);
  const DepthBlocks blocks(conv.C);
  const bool packed = job.plan.shared_floats > 0;
  const auto multiply = [&](int64_t element, int64_t block, int64_t panel, const float* u, const float* next) {
    const int64_t c = block * blocks.depth;
    multiply_element(chunk.tiles, min(blocks.depth, conv.C - c), memory.source + element * in.plane + c, in.pitch, u,
                     memory.product + element * out.plane + (panel - part.panel_begin) * kWidth, out.pitch, c > 0,
                     next);
  };
  if (packed) {  // an element's tiles stay in the cache while all its panels pass
    for (int64_t element = 0; element < kWinogradElements; ++element) {
      for (int64_t block = 0; block < blocks.count; ++block) {
        const float* u = job.packed_weight + element * element_pitch(blocks.depth_of(block));
        for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel)
          multiply(element, block, panel, u + packed_block(conv, panel, block),
                   u + packed_block(conv, panel + 1, block));
      }
    }
    return;
  }
  for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t depth = blocks.depth_of(block), pitch = element_pitch(depth);
      transform_weight(conv, job.weight, panel, block * blocks.depth, depth, memory.shared);
      for (int64_t element = 0; element < kWinogradElements; ++element)
        multiply(element, block, panel, memory.shared + element * pitch, memory.shared + (element + 1) * pitch);
    }
  }
}

// Where a tile's outputs go: `channels` from k, rows and columns that exist.
struct TileOutput {
  float* data;
  Strides stride;
  int64_t channels, rows, columns;
};

template <int kColumns>
CNNFAST_INLINE void write_tile_row(const Vec<float> (&y)[kColumns], const TileOutput& out, int64_t row) {
  const bool whole = out.channels == kLanes<float>;
  float* to = out.data + row * out.stride.h;
  if (whole && out.stride.c == 1) {
    unroll<kColumns>([&](auto j) CNNFAST_INLINE_LAMBDA {
      if (j.value < out.columns) store_vec(to + j.value * out.stride.w, y[j.value]);
    });
  } else if (whole && out.stride.w == 1) {
    with_constant<1, kColumns>(
        out.columns, [&](auto columns) CNNFAST_INLINE_LAMBDA { store_transposed<columns.value>(y, to, out.stride.c); });
  } else {
    for (int64_t j = 0; j < out.columns; ++j)
      for (int64_t lane = 0; lane < out.channels; ++lane) to[j * out.stride.w + lane * out.stride.c] = y[j][lane];
  }
}

// output = A^T products A, of windows of kPool x kPool the largest, + bias, and what the activation makes of it. False
// if something is not finite.
template <int kPool>
static bool write_chunk(const WinogradJob& job, const Chunk& chunk, const PlanPart& part, const float* products) {
  constexpr int64_t kLane = kLanes<float>;
  constexpr int kSide = kWinogradOutputs / kPool;  // of what is written of a tile
  const WinogradConv& conv = job.conv;
  const TilePlanes planes(job.plan.part_panels * kPanelWidth<float>, job.plan.chunk_tiles);
  const Clip<float> clip(job.epilogue.clip());
  Vec<float> probe{};
  for (int64_t index = chunk.begin; index < chunk.end; ++index) {
    const Strip strip(job.plan, index);
    const int64_t p = strip.row * kSide, rows = min<int64_t>(kSide, conv.P / kPool - p);
    const int64_t left = strip.column * kSide, columns = min(strip.tiles * kSide, conv.Q / kPool - left);
    for (int64_t block = part.begin; block < part.end; block += kChannelBlock) {
      for (int64_t t = 0; t < strip.tiles; ++t) {
        const int64_t q = left + t * kSide;
        for (int64_t k = block; k < min(block + kChannelBlock, part.end); k += kLane) {
          const TileOutput out{job.output.at(strip.n, k, p, q), job.output.stride, min(kLane, part.end - k), rows,
                               min<int64_t>(kSide, conv.Q / kPool - q)};
          const Vec<float> bias = job.bias != nullptr ? load_partial(job.bias + k, out.channels) : Vec<float>{};
          const float* m = products + (strip.number - chunk.first + t) * planes.pitch + k - part.begin;
          Vec<float> y[kSide];
          transform_both_ways<WinogradTile::output(), false, Vec<float>>(
              [&](int i, int j) CNNFAST_INLINE_LAMBDA { return load_vec(m + (i * kWinogradSize + j) * planes.plane); },
              [&](int i, int j, Vec<float> value) CNNFAST_INLINE_LAMBDA {
                probe += value - value;  // zero, unless it is not finite
                Vec<float>& best = y[j / kPool];
                best = i % kPool == 0 && j % kPool == 0 ? value : max_or_second(best, value);
                if (i % kPool != kPool - 1 || j % kPool != kPool - 1) return;
                best = clip(best + bias);
                if (j == kWinogradOutputs - 1 && i / kPool < out.rows) write_tile_row(y, out, i / kPool);
              });
        }
      }
      finish_box(job.epilogue, job.output,
                 {strip.n, block, min(kChannelBlock, part.end - block), p, rows, left, columns});
    }
  }
  return !any_lane(probe != Vec<float>{});
}

static bool winograd_forward(const WinogradJob& job, int64_t task, float* base) {
  const WinogradPlan& plan = job.plan;
  const int64_t begin = task / plan.parts * plan.chunk;
  const Chunk chunk(plan, begin, min(begin + plan.chunk, plan.strips));
  const PlanPart part(job.conv, plan, task % plan.parts);
  const WinogradMemory memory(job.conv, plan, 0, base);
  transform_source(job.conv, plan, job.source, chunk, memory.source, memory.staged);
  multiply_chunk(job, chunk, part, memory);
  return job.pool == 1 ? write_chunk<1>(job, chunk, part, memory.product)
                       : write_chunk<kWinogradPool>(job, chunk, part, memory.product);
}

static bool winograd_plan(const WinogradConv& conv, int64_t threads, WinogradPlan* plan) {
  // A chunk takes some 1.5 MB; with many channels it is kFewTiles, so that the weights, which it reads all, are not
  // read too often.
  constexpr int64_t kChunkBytes = int64_t{3} << 19, kFewTiles = 96;
  if (!winograd_pays(conv)) return false;
  cut_tiles(conv, plan);
  const int64_t tile_bytes = kWinogradElements * (conv.C + conv.K) * static_cast<int64_t>(sizeof(float));
  const int64_t all_tiles = conv.N * plan->tile_rows * plan->tile_columns;
  int64_t tiles = max(kChunkBytes / tile_bytes, kFewTiles);
  // Threads share the tiles or, where there are fewer tiles than channels, the channels.
  if (all_tiles >= conv.K) tiles = min(tiles, ceil_div(all_tiles, threads));
  cut_chunks(plan->strips, tiles, plan);
  plan->slices = ceil_div(plan->strips, plan->chunk);
  cut_parts(ceil_div(threads, plan->slices), plan);
  // Weights that only one chunk uses are transformed by the task that uses them, and stay in its cache.
  const int64_t own = plan->slices > 1 ? 0 : kWinogradElements * element_pitch(DepthBlocks(conv.C).depth);
  plan->shared_floats = plan->slices > 1 ? packed_block(conv, plan->panels, 0) : 0;
  plan->task_floats = WinogradMemory(conv, *plan, own, nullptr).floats;
  return true;
}

}  // namespace cnnfast::CNNFAST_ISA
