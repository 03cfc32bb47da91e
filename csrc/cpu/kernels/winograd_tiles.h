// What every use of Winograd's tiles shares: strips and chunks of them, and the transforms of a tensor's tiles.
//
// Vectorised over channels: tiles are transformed 16 channels at a time, from the tensor where it is channels-last and
// the strip lies inside the image, else from a staged copy with its padding.
#pragma once

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/scratch.h"
#include "cpu/kernels/transpose.h"
#include "cpu/kernels/winograd_transforms.h"
#include "cpu/winograd_conv2d.h"

namespace cnnfast::CNNFAST_ISA {

using WinogradTile = Winograd<kWinogradOutputs, kWinogradTaps>;

// Channels transformed together: whole cache lines of the transformed tiles are written and read.
constexpr int64_t kChannelBlock = 2 * kLanes<float>;
// Tiles of a strip at most: its 6 rows of kChannelBlock staged channels stay in L1.
constexpr int64_t kStripTiles = 16;

// The tiles of one strip.
struct Strip {
  int64_t n, row, column, tiles;  // image, tile row, first tile column, count
  int64_t number;                 // of its first tile, of all images

  Strip(const WinogradPlan& plan, int64_t strip)
      : n(strip / plan.strips_per_row / plan.tile_rows),
        row(strip / plan.strips_per_row % plan.tile_rows),
        column(strip % plan.strips_per_row * plan.strip),
        tiles(min(plan.strip, plan.tile_columns - column)),
        number(strip / plan.strips_per_row * plan.tile_columns + column) {}
};

// Strips [begin, end), transformed at one time, and their tiles.
struct Chunk {
  int64_t begin, end, first, tiles;

  Chunk(const WinogradPlan& plan, int64_t begin, int64_t end)
      : begin(begin),
        end(end),
        first(Strip(plan, begin).number),
        tiles(begin == end ? 0 : Strip(plan, end - 1).number + Strip(plan, end - 1).tiles - first) {}
};

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
  constexpr int64_t kColumns = 4;
  if (channels < kChannelBlock || columns < kColumns)
    return transpose(from, channel, channels, columns, to, kChannelBlock);
  for (int64_t j = 0; j < columns; j += kColumns) {
    if (j + kColumns > columns) j = columns - kColumns;
    for (int64_t v = 0; v < kChannelBlock; v += kLanes<float>) {
      Vec<float> pixels[kColumns];
      load_transposed<kColumns>(from + v * channel + j, channel, pixels);
#pragma GCC unroll 4
      for (int i = 0; i < kColumns; ++i) store_vec(to + (j + i) * kChannelBlock + v, pixels[i]);
    }
  }
}

// A strip's source rows, `channels` of them from c, with padding: in place if all of it lies inside and whole registers
// of channels are neighbours, else copied to `staged`.
static TileSource stage_strip(View<const float> source, int64_t H, int64_t W, int64_t n, int64_t top, int64_t left,
                              int64_t rows, int64_t columns, int64_t c, int64_t channels, float* staged) {
  if (source.stride.c == 1 && channels % kLanes<float> == 0 && top >= 0 && left >= 0 && top + rows <= H &&
      left + columns <= W) {
    return {source.at(n, c, top, left), source.stride.h, source.stride.w};
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
    const float* from = source.at(n, c, top + i, left + inside.begin);
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

// kMatrix d kMatrix^T of a chunk's tiles, channels [begin, end) of an H x W source whose tile (0, 0) starts at (top,
// left); to transformed, from channel 0.
template <auto kMatrix>
static void transform_tiles(View<const float> source, int64_t H, int64_t W, int64_t top, int64_t left, int64_t begin,
                            int64_t end, const WinogradPlan& plan, const Chunk& chunk, const TilePlanes& planes,
                            float* transformed, float* staged) {
  constexpr int kIn = kMatrix.kColumns;
  for (int64_t index = chunk.begin; index < chunk.end; ++index) {
    const Strip strip(plan, index);
    const int64_t columns = (strip.tiles - 1) * kWinogradOutputs + kIn;
    for (int64_t c = begin; c < end; c += kChannelBlock) {
      const int64_t channels = min(kChannelBlock, end - c);
      const TileSource from = stage_strip(source, H, W, strip.n, top + strip.row * kWinogradOutputs,
                                          left + strip.column * kWinogradOutputs, kIn, columns, c, channels, staged);
      for (int64_t t = 0; t < strip.tiles; ++t) {
        for (int64_t v = 0; v < channels; v += kLanes<float>) {
          const float* x = from.data + t * kWinogradOutputs * from.pixel + v;
          float* to = transformed + (strip.number - chunk.first + t) * planes.pitch + c - begin + v;
          transform_both_ways<kMatrix, true, Vec<float>>(
              [&](int i, int j) CNNFAST_INLINE_LAMBDA { return load_vec(x + i * from.row + j * from.pixel); },
              [&](int i, int j, Vec<float> value)
                  CNNFAST_INLINE_LAMBDA { store_vec(to + (i * kWinogradSize + j) * planes.plane, value); });
        }
      }
    }
  }
}

static void transform_source(const WinogradConv& conv, const WinogradPlan& plan, View<const float> source,
                             const Chunk& chunk, float* transformed, float* staged) {
  transform_tiles<WinogradTile::input()>(source, conv.H, conv.W, -conv.pad_top, -conv.pad_left, 0, conv.C, plan, chunk,
                                         TilePlanes(conv.C, plan.chunk_tiles), transformed, staged);
}

// The output channels of a task.
struct PlanPart {
  int64_t panel_begin, panel_end;  // panels
  int64_t begin, end;              // channels

  PlanPart(const WinogradConv& conv, const WinogradPlan& plan, int64_t part)
      : panel_begin(part * plan.panels / plan.parts),
        panel_end((part + 1) * plan.panels / plan.parts),
        begin(panel_begin * kPanelWidth<float>),
        end(min(conv.K, panel_end * kPanelWidth<float>)) {}
};

// A task's memory.
struct WinogradMemory {
  float *source, *product, *staged, *shared;
  int64_t floats;

  WinogradMemory(const WinogradConv& conv, const WinogradPlan& plan, int64_t own_shared, float* memory) {
    Scratch scratch(memory);
    source = scratch.take<float>(TilePlanes(conv.C, plan.chunk_tiles).floats());
    product = scratch.take<float>(TilePlanes(plan.part_panels * kPanelWidth<float>, plan.chunk_tiles).floats());
    staged = scratch.take<float>(kWinogradSize * (plan.strip * kWinogradOutputs + kWinogradTaps - 1) * kChannelBlock);
    shared = scratch.take<float>(own_shared);
    floats = static_cast<int64_t>(scratch.used() / sizeof(float));
  }
};

// Whether Winograd takes less time than summing directly, counted in multiply-adds: as many as a core does meanwhile, a
// transform takes kTile for a channel of a tile, `kernel` for the weights (or sums) of a pair of channels. Measured on
// Zen 4, where direct sums reach 80 % of the speed of Winograd's products, and on Emerald Rapids, where multiply-adds
// of 64 bytes gain more than the transforms' loads and stores. (Direct sums have weights to pack, too; those in
// channels_last they pack the faster. Packed already, they alone are read in order, which counts for weights that
// another layer has pushed out of the cache.)
static bool winograd_pays(const WinogradConv& conv) {
  constexpr int64_t kMostWeightBytes = int64_t{256} << 20;  // transformed, four times as many as given
  if (kWinogradElements * conv.C * conv.K * static_cast<int64_t>(sizeof(float)) > kMostWeightBytes) return false;
  if (conv.rival == WinogradRival::none) return min(conv.N * conv.P * conv.Q, conv.C * conv.K) > 0;
  const double kernel = conv.rival == WinogradRival::packed_sums ? 1300 : conv.dense_taps ? 300 : 600;
  constexpr double kTile = CNNFAST_VECTOR_BYTES == 64 ? 1100 : 800, kDirect = kWinogradTaps * kWinogradTaps / 0.8;
  const double C = static_cast<double>(conv.C), K = static_cast<double>(conv.K);
  const double multiplied = static_cast<double>(round_up(conv.K, kPanelWidth<float>));
  const double pixels = static_cast<double>(conv.N * conv.P * conv.Q);
  const double tiles =
      static_cast<double>(conv.N * ceil_div(conv.P, kWinogradOutputs) * ceil_div(conv.Q, kWinogradOutputs));
  return tiles * (kWinogradElements * C * multiplied + kTile * (C + K)) + kernel * C * K < kDirect * pixels * C * K;
}

// The strips, and chunks of `chunk_tiles` or so.
static void cut_tiles(const WinogradConv& conv, WinogradPlan* plan) {
  plan->tile_rows = ceil_div(conv.P, kWinogradOutputs);
  plan->tile_columns = ceil_div(conv.Q, kWinogradOutputs);
  plan->strip = even_part(plan->tile_columns, kStripTiles);
  plan->strips_per_row = ceil_div(plan->tile_columns, plan->strip);
  plan->strips = conv.N * plan->tile_rows * plan->strips_per_row;
  plan->panels = ceil_div(conv.K, kPanelWidth<float>);
}

static void cut_chunks(int64_t strips, int64_t tiles, WinogradPlan* plan) {
  plan->chunk = even_part(strips, max(tiles / plan->strip, int64_t{1}));
  plan->chunk_tiles = plan->chunk * plan->strip;
}

static void cut_parts(int64_t parts, WinogradPlan* plan) {
  plan->parts = min(max(parts, int64_t{1}), plan->panels);
  plan->part_panels = ceil_div(plan->panels, plan->parts);
  plan->tasks = plan->slices * plan->parts;
}

}  // namespace cnnfast::CNNFAST_ISA
