// Direct convolution + bias (+ ReLU), vectorised over output columns: for few channels, where implicit GEMM would pack
// more than it multiplies.
//
//   output[k][p][q] = bias[k] + sum over c, r, s of weight[k][c][r][s] * input[c][p * stride_h + r][q * stride_w + s]
//                                                                                            (input padded)
//
// A band of the input is copied with its padding; with a stride_w of 2 its even and odd columns apart, so that
// neighbouring outputs read neighbouring elements: tap s lies in half s % 2, s / 2 columns on.
//
// A tile is up to 4 output channels times 3 registers of columns or 6 times 2: 12 sums, 7 or 8 loads for 12
// multiply-adds. Of wide registers, with AVX-512, it is up to 6 times 4: most loads cross a line of the
// cache, and count twice. A row's last register overlaps its neighbour, so that every register is whole; only rows
// shorter than one are stored in part.
#pragma once

#include "cpu/direct_conv2d.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/padded_planes.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kDirectSums = kWideRegisters ? 24 : 12, kDirectChannels = 6, kDirectVectors = kWideRegisters ? 4 : 3;
constexpr int64_t kDirectBandBytes = 64 << 10;  // input of a task: what stays in the first cache levels

// With a stride_w of 2 each row is two halves.
static PaddedPlanes direct_input(const Conv2dShape& conv, int64_t band) {
  const int64_t columns = max<int64_t>(conv.Q, kLanes<float>) + (conv.S - 1) / conv.stride_w;
  return {(band - 1) * conv.stride_h + conv.R, conv.stride_w * columns};
}

// How a convolution is cut into tiles: its channels in nearly equal blocks, its rows' registers in full blocks first.
struct DirectTiles {
  int64_t K, vectors, most_vectors, blocks;

  explicit DirectTiles(const Conv2dShape& conv) : K(conv.K), vectors(ceil_div(conv.Q, kLanes<float>)) {
    const bool widest = vectors % kDirectVectors == 0 || K <= kDirectSums / kDirectVectors;
    most_vectors = widest ? kDirectVectors : min(kDirectVectors, kDirectSums / kDirectChannels);
    blocks = ceil_div(K, kDirectSums / most_vectors);
  }
  int64_t begin(int64_t block) const { return K * block / blocks; }
  int64_t end(int64_t block) const { return begin(block + 1); }
  // Nearly equal: 4 registers are 2 + 2, not 3 + 1.
  int64_t vectors_at(int64_t v) const { return ceil_div(vectors - v, ceil_div(vectors - v, most_vectors)); }
};

// `x` points at the tile's first input row; `column` says where each register of columns begins. With kSize == 3 the
// taps of a 3x3 kernel are unrolled; with 0 the kernel is whatever `conv` says.
template <int kChannels, int kVectors, int kSize>
CNNFAST_INLINE void direct_conv2d_tile(const DirectConv2d& job, const float* x, const PaddedPlanes& padded,
                                       const int64_t* column, const float* weight, float* output, int64_t count) {
  Vec<float> sum[kChannels][kVectors];
#pragma GCC unroll 6
  for (int k = 0; k < kChannels; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[k][v] = broadcast(weight[k]);  // bias comes first
  weight += kChannels;

  const int64_t R = kSize > 0 ? kSize : job.conv.R, S = kSize > 0 ? kSize : job.conv.S;
  const int64_t to_odd = job.conv.stride_w == 2 ? padded.pitch / 2 : 1,
                to_even = job.conv.stride_w == 2 ? 1 - to_odd : 1;
  for (int64_t c = 0; c < job.conv.C; ++c, x += padded.plane()) {
#pragma GCC unroll 3
    for (int64_t r = 0; r < R; ++r) {
      const float* tap = x + r * padded.pitch;
#pragma GCC unroll 3
      for (int64_t s = 0; s < S; ++s) {
        Vec<float> xv[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          xv[v] = load_vec(tap + column[v]);
          pin(xv[v]);
        }
#pragma GCC unroll 6
        for (int k = 0; k < kChannels; ++k) {
          const Vec<float> w = broadcast(weight[k]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[k][v] += w * xv[v];
        }
        weight += kChannels;
        tap += s % 2 == 0 ? to_odd : to_even;
        forget_loads();
      }
    }
  }
  const Clip<float> clip(job.epilogue.clip());
#pragma GCC unroll 6
  for (int k = 0; k < kChannels; ++k) {
    float* row = output + k * job.output.stride.c;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vec<float> y = clip(sum[k][v]);
      if (count >= kLanes<float>) {
        store_vec(row + column[v], y);
      } else {
        store_partial(row, y, count);
      }
    }
  }
}

template <int kChannels, int kVectors, int kSize>
void direct_conv2d_columns(const DirectConv2d& job, const float* x, const PaddedPlanes& padded, int64_t n, int64_t top,
                           int64_t rows, int64_t k, int64_t first, const float* weight) {
  const int64_t Q = job.conv.Q;
  int64_t column[kVectors];
  for (int v = 0; v < kVectors; ++v) column[v] = max<int64_t>(0, min(first + v * kLanes<float>, Q - kLanes<float>));
  for (int64_t i = 0; i < rows; ++i)
    direct_conv2d_tile<kChannels, kVectors, kSize>(job, x + i * job.conv.stride_h * padded.pitch, padded, column,
                                                   weight, job.output.at(n, k, top + i, 0), Q);
}

// Output rows [top, top + rows) of image n; `x` holds padded rows from `top` on.
static void direct_conv2d_rows(const DirectConv2d& job, const float* x, const PaddedPlanes& padded, int64_t n,
                               int64_t top, int64_t rows) {
  const Conv2dShape& conv = job.conv;
  const bool unrolled = conv.R == kUnrolledSize && conv.S == kUnrolledSize;
  const DirectTiles tiles(conv);
  const float* weight = job.packed_weight;
  for (int64_t block = 0; block < tiles.blocks; ++block) {
    const int64_t k = tiles.begin(block), count = tiles.end(block) - k;
    for (int64_t v = 0; v < tiles.vectors; v += tiles.vectors_at(v)) {
      with_tile<kDirectChannels>(count, unrolled, [&](auto channels, auto size) {
        constexpr int kVectors = min(kDirectVectors, kDirectSums / channels.value);
        with_constant<1, kVectors>(tiles.vectors_at(v), [&](auto vectors) {
          direct_conv2d_columns<channels.value, vectors.value, size.value>(job, x, padded, n, top, rows, k,
                                                                           v * kLanes<float>, weight);
        });
      });
    }
    weight += count * (1 + conv.C * conv.R * conv.S);
  }
}

// The input under output rows from `top` on.
static void copy_direct_input(const Conv2dShape& conv, View<const float> input, int64_t n, int64_t top,
                              const PaddedPlanes& padded, float* out) {
  if (conv.stride_w == 2) {
    copy_halves(conv, input, n, top * conv.stride_h, padded, out);
  } else {
    copy_padded(conv, input, n, top * conv.stride_h, padded, out);
  }
}

static void direct_conv2d(const DirectConv2d& job, int64_t n, int64_t band_index, char* workspace) {
  const int64_t top = band_index * job.plan.band, rows = min(job.plan.band, job.conv.P - top);
  const PaddedPlanes padded = direct_input(job.conv, job.plan.band);
  float* x = reinterpret_cast<float*>(workspace);
  copy_direct_input(job.conv, job.input, n, top, padded, x);
  direct_conv2d_rows(job, x, padded, n, top, rows);
  finish_box(job.epilogue, job.output, {n, 0, job.conv.K, top, rows, 0, job.conv.Q});
}

static bool direct_conv2d_plan(const Conv2dShape& conv, DirectConv2dPlan* plan) {
  // Implicit GEMM packs each input element R * S times, which K products must repay; and narrow rows fill its registers
  // with pixels of several rows, where this would leave them half empty.
  const bool few_channels = conv.C <= 4 || (conv.C <= 32 && conv.K <= 32);
  if (conv.G != 1 || conv.stride_w > 2 || conv.dilation_h != 1 || conv.dilation_w != 1 || conv.R * conv.S == 1 ||
      !few_channels || 3 * conv.Q < 2 * round_up(conv.Q, kLanes<float>))
    return false;
  const int64_t band = band_of(conv.P, conv.N, conv.K * conv.C * conv.R * conv.S * conv.Q, [&](int64_t rows) {
    return conv.C * direct_input(conv, rows).plane() * 4 <= kDirectBandBytes;
  });
  plan->band = band;
  plan->bands = ceil_div(conv.P, band);
  plan->packed_weight = conv.K * (1 + conv.C * conv.R * conv.S);
  plan->workspace_bytes = conv.C * direct_input(conv, band).plane() * 4;
  return true;
}

// Bias, then [C][R][S] taps, of each block of channels in turn.
static void pack_direct_conv2d(const Conv2dShape& conv, View<const float> weight, const float* bias, float* packed) {
  const DirectTiles tiles(conv);
  for (int64_t block = 0; block < tiles.blocks; ++block) {
    const int64_t begin = tiles.begin(block), end = tiles.end(block);
    for (int64_t k = begin; k < end; ++k) *packed++ = bias != nullptr ? bias[k] : 0.0f;
    for (int64_t c = 0; c < conv.C; ++c)
      for (int64_t r = 0; r < conv.R; ++r)
        for (int64_t s = 0; s < conv.S; ++s)
          for (int64_t k = begin; k < end; ++k) *packed++ = *weight.at(k, c, r, s);
  }
}

}  // namespace cnnfast::CNNFAST_ISA
