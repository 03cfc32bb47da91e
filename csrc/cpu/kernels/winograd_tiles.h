// What every use of Winograd's tiles shares: strips and chunks of them, and the transforms of a tensor's tiles.
//
// Vectorised over channels: tiles are transformed 16 channels at a time, from the tensor where it is channels-last and
// the strip lies inside the image, else from a staged copy with its padding.
#pragma once

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/winograd_transforms.h"
#include "cpu/winograd_conv2d.h"

namespace cnnfast::CNNFAST_ISA {

using WinogradTile = Winograd<kWinogradOutputs, kWinogradTaps>;

// Channels transformed together: whole cache lines of the transformed tiles are written and read.
constexpr int64_t kChannelBlock = 2 * kLanes<float>;
// Channels of a task of a transform.
constexpr int64_t kTransformChannels = 64;
// Tiles of a strip at most: its 6 rows of kChannelBlock staged channels stay in L1.
constexpr int64_t kStripTiles = 16;

// The tiles of one strip.
struct Strip {
  int64_t n, row, column, tiles;  // image, tile row, first tile column, count
  int64_t first;                  // number of its first tile within the chunk

  Strip(const WinogradPlan& plan, int64_t chunk, int64_t index) {
    const int64_t begin = chunk * plan.chunk, at = begin + index;
    n = at / plan.strips_per_row / plan.tile_rows;
    row = at / plan.strips_per_row % plan.tile_rows;
    column = at % plan.strips_per_row * plan.strip;
    tiles = min(plan.strip, plan.tile_columns - column);
    first = tile_number(plan, at) - tile_number(plan, begin);
  }
  static int64_t tile_number(const WinogradPlan& plan, int64_t strip) {
    return strip / plan.strips_per_row * plan.tile_columns + strip % plan.strips_per_row * plan.strip;
  }
};

static inline int64_t chunk_strips(const WinogradPlan& plan, int64_t chunk) {
  return min(plan.chunk, plan.strips - chunk * plan.chunk);
}
static inline int64_t chunk_tiles(const WinogradPlan& plan, int64_t chunk) {
  const int64_t begin = chunk * plan.chunk;
  return Strip::tile_number(plan, begin + chunk_strips(plan, chunk)) - Strip::tile_number(plan, begin);
}

// Transformed tiles [element][tile][channel]: pitches of a tile and of an element. Neither is a multiple of a large
// power of two, else a product's rows, or the elements of a tile, would fall into a few sets of L1.
struct TilePlanes {
  int64_t pitch, plane;

  TilePlanes(int64_t channels, int64_t tiles) : pitch(round_up(channels, kChannelBlock)) {
    if (pitch % 128 == 0) pitch += kChannelBlock;
    plane = tiles * pitch + 16;
  }
  int64_t floats() const { return kWinogradElements * plane; }
};

// Rows of pixels that tiles are read from: element (i, j) of tile t is at data[i * row + (kWinogradOutputs * t + j) *
// pixel], its channels neighbours.
struct TileSource {
  const float* data;
  int64_t row, pixel;
};

// to[j][channel] = from[channel][j] of one block of channels.
static void stage_transposed(const float* from, int64_t channel, int64_t channels, int64_t columns, float* to) {
  constexpr int kLane = kLanes<float>;
  if (channels < kChannelBlock || columns < kLane)
    return transpose(from, channel, channels, columns, to, kChannelBlock);
  for (int64_t j = 0; j < columns; j += kLane) {
    if (j + kLane > columns) j = columns - kLane;
    for (int64_t v = 0; v < kChannelBlock; v += kLane) {
      Vec<float> pixels[kLane];
      load_transposed(from + v * channel + j, channel, pixels);
#pragma GCC unroll 16
      for (int i = 0; i < kLane; ++i) store_vec(to + (j + i) * kChannelBlock + v, pixels[i]);
    }
  }
}

// A strip's source rows, `channels` of them from c, with padding: in place if all of it lies inside and whole registers
// of channels are neighbours, else copied to `staged`.
static TileSource stage_strip(View<const float> source, int64_t H, int64_t W, const Strip& strip, int64_t top,
                              int64_t left, int64_t rows, int64_t columns, int64_t c, int64_t channels, float* staged) {
  if (source.stride.c == 1 && channels % kLanes<float> == 0 && top >= 0 && left >= 0 && top + rows <= H &&
      left + columns <= W) {
    return {source.at(strip.n, c, top, left), source.stride.h, source.stride.w};
  }
  const Range inside = window_taps(left, columns, 1, W);
  const int64_t count = inside.end - inside.begin;
  for (int64_t i = 0; i < rows; ++i) {
    float* to = staged + i * columns * kChannelBlock;
    if (top + i < 0 || top + i >= H || count <= 0) {
      std::memset(to, 0, static_cast<size_t>(columns * kChannelBlock) * sizeof(float));
      continue;
    }
    const auto clear = [&](int64_t begin, int64_t end) {
      if (begin < end) {
        std::memset(to + begin * kChannelBlock, 0, static_cast<size_t>((end - begin) * kChannelBlock) * sizeof(float));
      }
    };
    if (channels < kChannelBlock) clear(inside.begin, inside.end);
    clear(0, inside.begin);
    clear(inside.end, columns);
    const float* from = source.at(strip.n, c, top + i, left + inside.begin);
    to += inside.begin * kChannelBlock;
    if (source.stride.w == 1) {
      stage_transposed(from, source.stride.c, channels, count, to);
    } else if (source.stride.c == 1 && channels == kChannelBlock) {
      for (int64_t j = 0; j < count; ++j, from += source.stride.w, to += kChannelBlock) {
        store_vec(to, load_vec(from));
        store_vec(to + kLanes<float>, load_vec(from + kLanes<float>));
      }
    } else {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t b = 0; b < channels; ++b)
          to[j * kChannelBlock + b] = from[j * source.stride.w + b * source.stride.c];
    }
  }
  return {staged, columns * kChannelBlock, kChannelBlock};
}

// kMatrix d kMatrix^T of a strip's tiles, whose first row and column of pixels are `top` and `left` in the source.
template <auto kMatrix>
static void transform_strip(View<const float> source, int64_t H, int64_t W, const Strip& strip, int64_t top,
                            int64_t left, int64_t c_begin, int64_t c_end, const TilePlanes& planes, float* transformed,
                            float* staged) {
  constexpr int kIn = kMatrix.kColumns;
  const int64_t columns = (strip.tiles - 1) * kWinogradOutputs + kIn;
  for (int64_t c = c_begin; c < c_end; c += kChannelBlock) {
    const int64_t channels = min(kChannelBlock, c_end - c);
    const TileSource from = stage_strip(source, H, W, strip, top, left, kIn, columns, c, channels, staged);
    for (int64_t t = 0; t < strip.tiles; ++t) {
      for (int64_t v = 0; v < channels; v += kLanes<float>) {
        const float* x = from.data + t * kWinogradOutputs * from.pixel + v;
        float* to = transformed + (strip.first + t) * planes.pitch + c + v;
        transform_both_ways<kMatrix, true, Vec<float>>(
            [&](int i, int j) CNNFAST_INLINE_LAMBDA { return load_vec(x + i * from.row + j * from.pixel); },
            [&](int i, int j, Vec<float> value)
                CNNFAST_INLINE_LAMBDA { store_vec(to + (i * kWinogradSize + j) * planes.plane, value); });
      }
    }
  }
}

static void winograd_transform_source(const WinogradConv& conv, const WinogradPlan& plan, View<const float> source,
                                      int64_t chunk, int64_t task, float* transformed, float* scratch) {
  const Strip strip(plan, chunk, task / plan.source_tasks);
  const int64_t c = task % plan.source_tasks * kTransformChannels;
  transform_strip<WinogradTile::input()>(source, conv.H, conv.W, strip, strip.row * kWinogradOutputs - conv.pad_top,
                                         strip.column * kWinogradOutputs - conv.pad_left, c,
                                         min(c + kTransformChannels, conv.C), TilePlanes(conv.C, plan.chunk_tiles),
                                         transformed, scratch);
}

// What a task of the products multiplies: where several chunks use the same weights (or sums), an element and some
// panels of K; where there is one chunk, a panel and all elements.
constexpr int64_t kProductPanels = max<int64_t>(64 / kPanelWidth<float>, 1);
static inline int64_t product_parts(const WinogradPlan& plan) { return ceil_div(plan.weight_panels, kProductPanels); }

struct ProductTask {
  int64_t element_begin = 0, element_end = kWinogradElements, panel_begin, panel_end;

  ProductTask(const WinogradPlan& plan, int64_t task) : panel_begin(task), panel_end(task + 1) {
    if (plan.chunks == 1) return;
    const int64_t parts = product_parts(plan), part = task % parts;
    element_begin = task / parts;
    element_end = element_begin + 1;
    panel_begin = part * plan.weight_panels / parts;
    panel_end = (part + 1) * plan.weight_panels / parts;
  }
};

// The part of a plan that every use of the tiles shares. A chunk's transformed tiles, of source and products, take some
// 1.5 MB; with many channels they are `few_tiles`, so that what they meet in the products is not read too often.
static void cut_tiles(const WinogradConv& conv, int64_t few_tiles, WinogradPlan* plan) {
  constexpr int64_t kChunkBytes = int64_t{3} << 19;
  plan->tile_rows = ceil_div(conv.P, kWinogradOutputs);
  plan->tile_columns = ceil_div(conv.Q, kWinogradOutputs);
  plan->strip = even_part(plan->tile_columns, kStripTiles);
  plan->strips_per_row = ceil_div(plan->tile_columns, plan->strip);
  plan->strips = conv.N * plan->tile_rows * plan->strips_per_row;
  const int64_t tile_bytes = kWinogradElements * (conv.C + conv.K) * static_cast<int64_t>(sizeof(float));
  const int64_t tiles = max(kChunkBytes / tile_bytes, few_tiles);
  plan->chunk = even_part(plan->strips, max(tiles / plan->strip, int64_t{1}));
  plan->chunks = ceil_div(plan->strips, plan->chunk);
  plan->chunk_tiles = plan->chunk * plan->strip;
  plan->weight_panels = ceil_div(conv.K, kPanelWidth<float>);
  plan->source_floats = TilePlanes(conv.C, plan->chunk_tiles).floats();
  plan->product_floats = TilePlanes(conv.K, plan->chunk_tiles).floats();
  plan->scratch_floats = kWinogradSize * (plan->strip * kWinogradOutputs + kWinogradTaps - 1) * kChannelBlock;
  plan->source_tasks = ceil_div(conv.C, kTransformChannels);
  plan->product_tasks = ceil_div(conv.K, kTransformChannels);
  plan->multiply_tasks = plan->chunks > 1 ? kWinogradElements * product_parts(*plan) : plan->weight_panels;
}

}  // namespace cnnfast::CNNFAST_ISA
