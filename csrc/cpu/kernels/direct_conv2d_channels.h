// Direct convolution + bias (+ ReLU), vectorised over output channels: for a network's first layer, whose few input
// channels neither fill registers nor repay packing, whatever its kernel and stride.
//
//   output[p][q][k] = bias[k] + sum over taps of input[p * stride_h, q * stride_w, tap] * weight[tap][k]
//
// A tile is 6 pixels of a row times 2 registers of channels, or 4 times 3: 12 sums, 7 or 8 loads for 12 multiply-adds.
// A tap (c, r, s) is an offset from a pixel's first input element, so that the input is read where it lies, in any
// layout; only if it has padding is a band of it copied. The last register of channels overlaps its neighbour, so that
// every register is whole; only fewer channels than one holds are stored in part.
#pragma once

#include "cpu/direct_conv2d.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/channels_last.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/padded_planes.h"
#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/scratch.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kChannelSums = 12, kMostChannelVectors = 3;
constexpr int64_t kChannelsBandBytes = 64 << 10;     // input of a task: what stays in the first cache levels
constexpr int64_t kChannelsWeightBytes = 256 << 10;  // weights that may be read again and again, from the second level
constexpr int64_t kMostChannelsBytes = 1 << 20;      // of a task's memory for one row: wider ones are left to others
constexpr int64_t kPiecePixels = 24;
constexpr int64_t kChannelsTaps = 1024;  // products of an output element at most

// The registers of output channels, in blocks of two; the first block takes an odd one's third.
struct ChannelBlocks {
  int64_t K, vectors, count;

  explicit ChannelBlocks(int64_t K)
      : K(K), vectors(max<int64_t>(ceil_div(K, kLanes<float>), 1)), count(max<int64_t>(vectors / 2, 1)) {}
  int64_t begin(int64_t block) const { return block == 0 ? 0 : block == count ? vectors : 2 * block + vectors % 2; }
  int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }
  // The channels of a register.
  int64_t first(int64_t v) const { return max<int64_t>(min(v * kLanes<float>, K - kLanes<float>), 0); }
  int64_t lanes() const { return min<int64_t>(kLanes<float>, K); }
};

// A band of the input as tiles read it: where it lies, or copied within its padding.
struct InputBand {
  const float* data;  // of the band's first window, its first element
  int64_t c, h, w;    // strides

  // Of a copy of `rows` output rows' input: what they read, and no more.
  static PaddedPlanes planes(const Conv2dShape& conv, int64_t rows) {
    return {(rows - 1) * conv.stride_h + (conv.R - 1) * conv.dilation_h + 1,
            (conv.Q - 1) * conv.stride_w + (conv.S - 1) * conv.dilation_w + 1};
  }
  static bool in_place(const Conv2dShape& conv) {
    return conv.pad_top == 0 && conv.pad_bottom == 0 && conv.pad_left == 0 && conv.pad_right == 0;
  }
  static int64_t floats(const Conv2dShape& conv, int64_t rows) {
    return in_place(conv) ? 0 : conv.C * planes(conv, rows).plane();
  }

  // Output rows [top, top + rows) of image n; `copy` holds floats(conv, rows).
  InputBand(const Conv2dShape& conv, View<const float> input, int64_t n, int64_t top, int64_t rows, float* copy) {
    if (in_place(conv)) {
      *this = {input.at(n, 0, top * conv.stride_h, 0), input.stride};
    } else if (input.stride.c == 1 && input.stride.w == conv.C) {  // pixels stay whole, as one plane of wider rows
      const PaddedPlanes padded = planes(conv, rows), wide{padded.rows, padded.pitch * conv.C};
      Conv2dShape as_plane = conv;
      as_plane.C = 1, as_plane.W = conv.W * conv.C, as_plane.pad_left = conv.pad_left * conv.C;
      copy_padded(as_plane, {input.data, {input.stride.n, 1, input.stride.h, 1}}, n, top * conv.stride_h, wide, copy);
      *this = {copy, {0, 1, wide.pitch, conv.C}};
    } else {
      const PaddedPlanes padded = planes(conv, rows);
      copy_padded(conv, input, n, top * conv.stride_h, padded, copy);
      *this = {copy, {0, padded.plane(), padded.pitch, 1}};
    }
  }

  // offset[tap] for the taps (c, r, s) in order.
  void tap_offsets(const Conv2dShape& conv, int64_t* offset) const {
    for (int64_t i = 0; i < conv.C; ++i)
      for (int64_t r = 0; r < conv.R; ++r)
        for (int64_t s = 0; s < conv.S; ++s) *offset++ = i * c + r * conv.dilation_h * h + s * conv.dilation_w * w;
  }

 private:
  InputBand(const float* data, const Strides& stride) : data(data), c(stride.c), h(stride.h), w(stride.w) {}
};

// Tiles of neighbouring pixels, x_step apart in the input and out_step in the output; a register v of channels goes to
// out + lane[v].
template <int kPixels, int kVectors>
__attribute__((noinline)) void channels_tiles(int64_t tiles, int64_t taps, const int64_t* offset, const float* x,
                                              int64_t x_step, const float* weight, Activation activation, float* out,
                                              int64_t out_step, const int64_t* lane) {
  constexpr int64_t kWidth = kVectors * kLanes<float>;
  const Clip<float> clip(activation);
  for (int64_t tile = 0; tile < tiles; ++tile, x += kPixels * x_step, out += kPixels * out_step) {
    Vec<float> sum[kPixels][kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const Vec<float> bias = load_vec(weight + v * kLanes<float>);
#pragma GCC unroll 6
      for (int i = 0; i < kPixels; ++i) sum[i][v] = bias;
    }
    // The lines to be written two tiles later.
    unroll<kPixels>([&](auto i) CNNFAST_INLINE_LAMBDA {
      __builtin_prefetch(out + (2 * kPixels + i.value) * out_step + lane[0], 1, 3);
    });
    const float* w = weight + kWidth;
#pragma GCC unroll 2
    for (int64_t t = 0; t < taps; ++t, w += kWidth) {
      // Two pointers reach six pixels by the processor's scaled addresses; one and three steps in a register reach
      // four.
      const float* lower = x + offset[t];
      const float* upper = lower + 3 * x_step;
      multiply_step(
          [&](int i)
              CNNFAST_INLINE_LAMBDA { return i < 3 || kPixels <= 4 ? lower[i * x_step] : upper[(i - 3) * x_step]; },
          w, sum);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        store_vec(out + i * out_step + lane[v], clip(sum[i][v]));
      }
    }
  }
}

// A row of pixels, cut in tiles of nearly equal width.
template <int kVectors>
static void channels_row(int64_t pixels, int64_t taps, const int64_t* offset, const float* x, int64_t x_step,
                         const float* weight, Activation activation, float* out, int64_t out_step,
                         const int64_t* lane) {
  constexpr int kMostPixels = min(kTileRows, kChannelSums / kVectors);
  const int64_t tiles = ceil_div(pixels, kMostPixels), width = pixels / tiles, wider = pixels % tiles;
  const auto run = [&](int64_t count, int64_t size) {
    if (count == 0) return;
    with_constant<1, kMostPixels>(size, [&](auto kPixels) {
      channels_tiles<kPixels.value, kVectors>(count, taps, offset, x, x_step, weight, activation, out, out_step, lane);
    });
    x += count * size * x_step;
    out += count * size * out_step;
  };
  run(wider, width + 1);
  run(tiles - wider, width);
}

// Output pixels [q, q + pixels) of row p of a block of channels; where channels do not lie side by side, by way of
// `row`.
template <int kVectors>
static void channels_pixels(const DirectConv2d& job, const float* x, int64_t x_step, const int64_t* offset,
                            const float* weight, int64_t n, const ChannelBlocks& blocks, int64_t block, int64_t p,
                            int64_t q, int64_t pixels, float* row) {
  constexpr int64_t kWidth = kVectors * kLanes<float>;
  const Strides& stride = job.output.stride;
  const int64_t taps = job.conv.C * job.conv.R * job.conv.S, begin = blocks.begin(block), lanes = blocks.lanes();
  const bool in_place = stride.c == 1 && lanes == kLanes<float>;
  int64_t lane[kVectors];
  for (int v = 0; v < kVectors; ++v) lane[v] = in_place ? blocks.first(begin + v) : v * kLanes<float>;
  float* out = in_place ? job.output.at(n, 0, p, q) : row;
  if (stride.w == 1) {
    for (int v = 0; v < kVectors; ++v) {
      const View<float> planes{job.output.at(n, blocks.first(begin + v), p, q), stride};
      prefetch_for_writing(planes, 0, lanes, 0, 1, pixels);
    }
  }
  channels_row<kVectors>(pixels, taps, offset, x, x_step, weight, job.epilogue.clip(), out,
                         in_place ? stride.w : kWidth, lane);
  if (in_place) return;
  for (int v = 0; v < kVectors; ++v) {
    const float* from = row + v * kLanes<float>;
    float* to = job.output.at(n, blocks.first(begin + v), p, q);
    if (stride.w == 1 && pixels >= 8 && lanes % 4 == 0) {
      pixels_to_planes(from, kWidth, pixels, lanes, to, stride.c);
    } else {
      for (int64_t i = 0; i < pixels; ++i)
        for (int64_t k = 0; k < lanes; ++k) to[i * stride.w + k * stride.c] = from[i * kWidth + k];
    }
  }
}

struct ChannelsScratch {
  int64_t* offset;
  float *input, *row;
  size_t bytes;

  ChannelsScratch(void* memory, const Conv2dShape& conv, int64_t band) {
    Scratch scratch(memory);
    offset = scratch.take<int64_t>(conv.C * conv.R * conv.S);
    input = scratch.take<float>(InputBand::floats(conv, band));
    row = scratch.take<float>(conv.Q * kMostChannelVectors * kLanes<float>);
    bytes = scratch.used();
  }
};

static void direct_conv2d_channels(const DirectConv2d& job, int64_t n, int64_t band_index, char* workspace) {
  const Conv2dShape& conv = job.conv;
  const int64_t top = band_index * job.plan.band, rows = min(job.plan.band, conv.P - top);
  const int64_t taps = conv.C * conv.R * conv.S;
  const ChannelsScratch scratch(workspace, conv, job.plan.band);
  const InputBand x(conv, job.input, n, top, rows, scratch.input);
  x.tap_offsets(conv, scratch.offset);

  // Pieces are written in about the order of memory: a few pixels with all their channels, or a band of some planes.
  const ChannelBlocks blocks(conv.K);
  const bool by_pixels = job.output.stride.c == 1 && job.plan.packed_weight * 4 <= kChannelsWeightBytes;
  const int64_t piece_rows = by_pixels ? 1 : rows,
                piece_columns = by_pixels && blocks.count > 1 ? min(kPiecePixels, conv.Q) : conv.Q;
  for (int64_t row = 0; row < rows; row += piece_rows) {
    for (int64_t q = 0; q < conv.Q; q += piece_columns) {
      const int64_t columns = min(piece_columns, conv.Q - q);
      const float* weight = job.packed_weight;
      for (int64_t block = 0; block < blocks.count; ++block) {
        with_constant<1, kMostChannelVectors>(blocks.size(block), [&](auto vectors) {
          for (int64_t i = row; i < row + piece_rows; ++i) {
            const float* from = x.data + i * conv.stride_h * x.h + q * conv.stride_w * x.w;
            channels_pixels<vectors.value>(job, from, conv.stride_w * x.w, scratch.offset, weight, n, blocks, block,
                                           top + i, q, columns, scratch.row);
          }
          weight += (1 + taps) * vectors.value * kLanes<float>;
        });
      }
      finish_box(job.epilogue, job.output, {n, 0, conv.K, top + row, piece_rows, q, columns});
    }
  }
}

static bool direct_conv2d_channels_plan(const Conv2dShape& conv, DirectConv2dPlan* plan) {
  const int64_t taps = conv.C * conv.R * conv.S;
  if (conv.G != 1 || conv.C > 4 || taps > kChannelsTaps || min(conv.P, conv.Q) < 1) return false;
  // Fewer lanes of use than five eighths do not repay what other algorithms pack.
  if (8 * conv.K < 5 * ChannelBlocks(conv.K).vectors * kLanes<float>) return false;
  const auto floats = [&](int64_t rows) { return InputBand::floats(conv, rows); };
  const int64_t band = band_of(conv.P, conv.N, conv.K * taps * conv.Q,
                               [&](int64_t rows) { return floats(rows) * 4 <= kChannelsBandBytes; });
  // Rows so wide that not even one fits are for implicit GEMM, which cuts them.
  if (floats(band) * 4 > 4 * kChannelsBandBytes) return false;
  plan->band = band;
  plan->bands = ceil_div(conv.P, band);
  plan->packed_weight = ChannelBlocks(conv.K).vectors * kLanes<float> * (1 + taps);
  plan->workspace_bytes = static_cast<int64_t>(ChannelsScratch(nullptr, conv, band).bytes);
  return plan->workspace_bytes <= kMostChannelsBytes;
}

// Bias, then the taps (c, r, s), of each block of registers in turn.
static void pack_direct_conv2d_channels(const Conv2dShape& conv, View<const float> weight, const float* bias,
                                        float* packed) {
  const ChannelBlocks blocks(conv.K);
  for (int64_t block = 0; block < blocks.count; ++block) {
    const auto pack = [&](const auto& value) {
      for (int64_t v = blocks.begin(block); v < blocks.begin(block + 1); ++v)
        for (int64_t lane = 0; lane < kLanes<float>; ++lane)
          *packed++ = lane < blocks.lanes() ? value(blocks.first(v) + lane) : 0.0f;
    };
    pack([&](int64_t k) { return bias != nullptr ? bias[k] : 0.0f; });
    for (int64_t c = 0; c < conv.C; ++c)
      for (int64_t r = 0; r < conv.R; ++r)
        for (int64_t s = 0; s < conv.S; ++s) pack([&](int64_t k) { return *weight.at(k, c, r, s); });
  }
}

}  // namespace cnnfast::CNNFAST_ISA
