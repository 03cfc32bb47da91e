// Direct convolution + bias + ReLU + 2x2 max-pool, vectorised over output channels.
//
//   output[k][i][j] = max over a, b in {0, 1} of relu(bias[k] + sum over c, r, s of
//                     weight[k][c][r][s] * input[c][2i + a + r][2j + b + s])        (input padded, stride 1)
//
// A tile is one pool window of `kVectors` registers of channels: 4 * kVectors sums. Three registers are 12 sums, which
// with 3 weights and one broadcast input fill the 16 registers of AVX2: 12 multiply-adds for 7 loads, bound by the
// multiply-adds. The window's maximum is taken in registers; the un-pooled map is never written.
#pragma once

#include "cpu/conv2d_relu_max_pool2d.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/padded_planes.h"
#include "cpu/kernels/pool_window.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kMaxChannelVectors = 3;

// Output channels are cut into blocks of 3 registers, the rest into 2s and 1s; a 4 is cut 2 + 2.
static int next_channel_block(int64_t vectors_left) {
  if (vectors_left == 4) return 2;
  return static_cast<int>(min<int64_t>(vectors_left, kMaxChannelVectors));
}

// The padded input under a band of pooled rows.
static PaddedPlanes pooled_input(const Conv2dShape& conv, const Pool2dShape& pool, int64_t band) {
  return {(2 * band - 1) * conv.stride_h + (conv.R - 1) * conv.dilation_h + 1,
          (2 * pool.Q - 1) * conv.stride_w + (conv.S - 1) * conv.dilation_w + 1};
}

// The sums of kPixels output pixels of kVectors registers of channels: four in a square, or some in a row. `x` is the
// corner of the first one's patch in channel 0. With kSize == 3 the kernel is 3x3 with stride and dilation 1, and its
// taps are unrolled; with 0 it is whatever `conv` says.
template <int kVectors, int kPixels, bool kSquare, int kSize>
CNNFAST_INLINE void direct_channels_sums(const Conv2dShape& conv, const float* x, int64_t pitch, int64_t plane,
                                         const float* weight, Vec<float> (&sum)[kVectors][kPixels]) {
  static_assert(!kSquare || kPixels == 4);
  constexpr int kLane = kLanes<float>;
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) sum[v][p] = load_vec(weight + v * kLane);  // bias comes first
  weight += kVectors * kLane;

  const int64_t step_h = kSize > 0 ? pitch : conv.stride_h * pitch, step_w = kSize > 0 ? 1 : conv.stride_w;
  const int64_t tap_h = kSize > 0 ? pitch : conv.dilation_h * pitch, tap_w = kSize > 0 ? 1 : conv.dilation_w;
  const int64_t R = kSize > 0 ? kSize : conv.R, S = kSize > 0 ? kSize : conv.S;
  for (int64_t c = 0; c < conv.C; ++c, x += plane) {
#pragma GCC unroll 3
    for (int64_t r = 0; r < R; ++r) {
      const float* upper = x + r * tap_h;
      const float* lower = upper + step_h;
#pragma GCC unroll 3
      for (int64_t s = 0; s < S; ++s) {
        Vec<float> w[kVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) {
          w[v] = load_vec(weight + v * kLane);
          pin(w[v]);
        }
        weight += kVectors * kLane;
#pragma GCC unroll 8
        for (int p = 0; p < kPixels; ++p) {
          const float* row = kSquare && p >= 2 ? lower : upper;
          const Vec<float> xp = broadcast(row[s * tap_w + (kSquare ? p % 2 : p) * step_w]);
#pragma GCC unroll 3
          for (int v = 0; v < kVectors; ++v) sum[v][p] += w[v] * xp;
        }
        forget_loads();
      }
    }
  }
}

// One pool window.
template <int kVectors, int kSize, bool kWithCode>
CNNFAST_INLINE void direct_channels_tile(const Conv2dShape& conv, const float* x, int64_t pitch, int64_t plane,
                                         const float* weight, float* value, uint8_t* code) {
  constexpr int kLane = kLanes<float>;
  Vec<float> sum[kVectors][4], pooled[kVectors];
  Vec<int32_t> winner[kVectors];
  direct_channels_sums<kVectors, 4, true, kSize>(conv, x, pitch, plane, weight, sum);
  pool_windows<kVectors, kWithCode>(sum, pooled, winner);
#pragma GCC unroll 3
  for (int v = 0; v < kVectors; ++v) {
    store_vec(value + v * kLane, pooled[v]);
    if constexpr (kWithCode) store_low_bytes(code + v * kLane, winner[v]);
  }
}

// Calls visit(registers, side of the unrolled kernel or 0, first channel, packed weight) for each block of channels.
template <class Visit>
CNNFAST_INLINE void for_each_channel_block(const Conv2dShape& conv, const float* weight, const Visit& visit) {
  const bool unit = conv.R == kUnrolledSize && conv.S == kUnrolledSize && conv.stride_h == 1 && conv.stride_w == 1 &&
                    conv.dilation_h == 1 && conv.dilation_w == 1;
  const int64_t vectors = ceil_div(conv.K, kLanes<float>);
  for (int64_t vector = 0; vector < vectors;) {
    const int block = next_channel_block(vectors - vector);
    with_tile<kMaxChannelVectors>(block, unit,
                                  [&](auto count, auto size) { visit(count, size, vector * kLanes<float>, weight); });
    weight += block * kLanes<float> * (1 + conv.C * conv.R * conv.S);
    vector += block;
  }
}

template <int kVectors, int kSize, bool kWithCode>
void direct_channels_block(const DirectForward& job, const PaddedPlanes& padded, const float* x, int64_t rows,
                           const float* weight, float* value, uint8_t* code, int64_t channels) {
  const Conv2dShape& conv = job.conv;
  const int64_t plane = padded.plane();
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < job.pool.Q; ++j, value += channels, code += channels)
      direct_channels_tile<kVectors, kSize, kWithCode>(conv,
                                                       x + 2 * i * conv.stride_h * padded.pitch + 2 * j * conv.stride_w,
                                                       padded.pitch, plane, weight, value, code);
}

// Writes [rows * Q][channels] to the tensor's own layout.
template <class T>
void scatter_channels(const T* __restrict from, int64_t channels, View<T> to, int64_t n, int64_t top, int64_t rows,
                      const Pool2dShape& pool) {
  if (to.stride.c == 1) {  // channels last
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < pool.Q; ++j, from += channels) copy_row(from, to.at(n, 0, top + i, j), pool.C);
    return;
  }
  // Rows that follow each other without a gap are one row.
  const bool joined = to.stride.h == pool.Q * to.stride.w;
  const int64_t lines = joined ? 1 : rows, length = joined ? rows * pool.Q : pool.Q;
  for (int64_t i = 0; i < lines; ++i, from += length * channels) {
    if (to.stride.w == 1) {
      transpose(from, channels, length, pool.C, to.at(n, 0, top + i, 0), to.stride.c);
    } else {
      for (int64_t j = 0; j < length; ++j)
        for (int64_t k = 0; k < pool.C; ++k) to.at(n, k, top + i, 0)[j * to.stride.w] = from[j * channels + k];
    }
  }
}

template <bool kWithCode>
void direct_channels(const DirectForward& job, int64_t n, int64_t band_index, char* workspace) {
  const Conv2dShape& conv = job.conv;
  const int64_t top = band_index * job.plan.band, rows = min(job.plan.band, job.pool.P - top);
  const int64_t channels = round_up(conv.K, kLanes<float>);
  const PaddedPlanes padded = pooled_input(conv, job.pool, job.plan.band);

  float* x = reinterpret_cast<float*>(workspace);
  float* value = x + round_up(conv.C * padded.plane(), 16);
  uint8_t* code = reinterpret_cast<uint8_t*>(value + round_up(job.plan.band * job.pool.Q * channels, 16));

  copy_padded(conv, job.input, n, 2 * top * conv.stride_h, padded, x);
  for_each_channel_block(conv, job.packed_weight, [&](auto vectors, auto size, int64_t k, const float* weight) {
    direct_channels_block<vectors.value, size.value, kWithCode>(job, padded, x, rows, weight, value + k, code + k,
                                                                channels);
  });
  scatter_channels(value, channels, job.output, n, top, rows, job.pool);
  if constexpr (kWithCode) scatter_channels(code, channels, job.code, n, top, rows, job.pool);
}

// Bias, then [C][R][S] taps, of each block of channels in turn; channels past K are zero.
static void pack_channels(const Conv2dShape& conv, View<const float> weight, const float* bias, float* packed) {
  const int64_t vectors = ceil_div(conv.K, kLanes<float>);
  for (int64_t vector = 0; vector < vectors;) {
    const int block = next_channel_block(vectors - vector);
    const int64_t begin = vector * kLanes<float>, end = begin + block * kLanes<float>;
    for (int64_t k = begin; k < end; ++k) *packed++ = k < conv.K && bias != nullptr ? bias[k] : 0.0f;
    for (int64_t c = 0; c < conv.C; ++c)
      for (int64_t r = 0; r < conv.R; ++r)
        for (int64_t s = 0; s < conv.S; ++s)
          for (int64_t k = begin; k < end; ++k) *packed++ = k < conv.K ? *weight.at(k, c, r, s) : 0.0f;
    vector += block;
  }
}

}  // namespace cnnfast::CNNFAST_ISA
