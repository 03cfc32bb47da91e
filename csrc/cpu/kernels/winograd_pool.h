// Winograd F(2x2, 3x3) convolution + bias + ReLU + 2x2 max-pool, for inference: an output tile is exactly one pool
// window, so the maximum is taken on the four values of the inverse transform, in registers. 16 multiplications per
// channel pair and window instead of 36.
//
//   Y = A^T [(G g G^T) * (B^T d B)] A      (Lavin & Gray, arXiv 1509.09308), d the 4x4 input tile, g the 3x3 kernel
//
// One register of windows (consecutive pooled columns) at a time: the input transform runs over windows, on even and
// odd input columns stored apart (see direct_width.h); the products run over output channels, kWindowBlock windows x 3
// registers; so does the inverse transform. Everything of one step stays in the first two cache levels.
//
// Its rounding differs from the direct sum's and could let another element of a near-tie win, so gradients do not use
// it. It also turns an infinity into NaN (inf - inf); a window whose result is not finite is computed again, directly.
#pragma once

#include "cpu/conv2d_relu_max_pool2d.h"
#include "cpu/kernels/direct_channels.h"
#include "cpu/kernels/direct_width.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/scratch.h"
#include "cpu/kernels/winograd_transforms.h"

namespace cnnfast::CNNFAST_ISA {

using PoolTile = Winograd<2, 3>;

// Windows that are multiplied at a time: with 3 registers of channels their sums fill AVX2's registers, or AVX-512's.
constexpr int kWindowBlock = CNNFAST_VECTOR_BYTES == 64 ? 8 : 4;

constexpr int kTransformed = PoolTile::kSize * PoolTile::kSize;  // elements of a transformed tile

// V[16][C][lanes] of one register of windows whose first input column is 2 * j.
static void transform_input(const Conv2dShape& conv, const float* x, const PaddedPlanes& padded, float* transformed) {
  constexpr int64_t kLane = kLanes<float>;
  const int64_t C = conv.C, element = C * kLane, half = padded.pitch / 2;
  for (int64_t c = 0; c < C; ++c, x += padded.plane(), transformed += kLane) {
    transform_both_ways<PoolTile::input(), true, Vec<float>>(
        [&](int i, int j) CNNFAST_INLINE_LAMBDA { return load_vec(x + (2 * i + j % 2) * half + j / 2); },
        [&](int i, int j, Vec<float> value)
            CNNFAST_INLINE_LAMBDA { store_vec(transformed + (i * PoolTile::kSize + j) * element, value); });
  }
}

// M[element][window][channels] = sum over c of U[element][c][channels] * V[element][c][window], for kWindows windows.
template <int kVectors, int kWindows>
CNNFAST_INLINE void multiply_windows(int64_t C, const float* u, const float* v, float* m) {
  constexpr int64_t kLane = kLanes<float>;
  Vec<float> sum[kWindows][kVectors] = {};
  for (int64_t c = 0; c < C; ++c, v += kLane, u += kVectors * kLane)
    multiply_step([&](int p) CNNFAST_INLINE_LAMBDA { return v[p]; }, u, sum);
#pragma GCC unroll 8
  for (int p = 0; p < kWindows; ++p)
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) store_vec(m + (p * kVectors + n) * kLane, sum[p][n]);
}

template <int kVectors>
void multiply_elements(int64_t C, int64_t windows, const float* u, const float* v, float* m) {
  constexpr int64_t kLane = kLanes<float>;
  const int64_t blocks = ceil_div(windows, kWindowBlock);
  for (int element = 0; element < kTransformed; ++element) {
    const float* ue = u + element * C * kVectors * kLane;
    const float* ve = v + element * C * kLane;
    float* me = m + element * kLane * kVectors * kLane;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t p = block * windows / blocks, count = (block + 1) * windows / blocks - p;
      with_constant<1, kWindowBlock>(count, [&](auto constant) CNNFAST_INLINE_LAMBDA {
        multiply_windows<kVectors, constant.value>(C, ue, ve + p, me + p * kVectors * kLane);
      });
    }
  }
}

// One channel of one window, summed directly.
static float direct_window(const DirectForward& job, const float* x, const PaddedPlanes& padded, int64_t k) {
  float best = 0;
  for (int p = 0; p < 4; ++p) {
    float sum = job.bias != nullptr ? job.bias[k] : 0.0f;
    for (int64_t c = 0; c < job.conv.C; ++c)
      for (int r = 0; r < 3; ++r)
        for (int s = 0; s < 3; ++s) {
          const int row = p / 2 + r, column = p % 2 + s;
          sum += *job.weight.at(k, c, r, s) *
                 x[c * padded.plane() + row * padded.pitch + column % 2 * (padded.pitch / 2) + column / 2];
        }
    if (p == 0 || sum > best || sum != sum) best = sum;
  }
  return best <= 0 ? 0.0f : best;
}

// ReLU of the maximum of A^T M A + bias, one window. False if a sum is not finite.
template <int kVectors>
CNNFAST_INLINE bool inverse_and_pool(const float* m, const float* bias, float* value) {
  constexpr int64_t kLane = kLanes<float>;
  constexpr int64_t kElement = kLane * kVectors * kLane;
  Vec<float> probe{};
#pragma GCC unroll 3
  for (int n = 0; n < kVectors; ++n) {
    Vec<float> upper[4], lower[4];  // summed from left to right: interpolate's pairs would round differently
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const Vec<float> m0 = load_vec(m + b * kElement + n * kLane), m1 = load_vec(m + (4 + b) * kElement + n * kLane),
                       m2 = load_vec(m + (8 + b) * kElement + n * kLane),
                       m3 = load_vec(m + (12 + b) * kElement + n * kLane);
      upper[b] = m0 + m1 + m2;
      lower[b] = m1 - m2 + m3;
    }
    const Vec<float> y00 = upper[0] + upper[1] + upper[2], y01 = upper[1] - upper[2] + upper[3];
    const Vec<float> y10 = lower[0] + lower[1] + lower[2], y11 = lower[1] - lower[2] + lower[3];
    probe += (y00 + y01) + (y10 + y11);
    const Vec<float> best = max_or_second(max_or_second(y11, y10), max_or_second(y01, y00));
    store_vec(value + n * kLane, max_or_second(best + load_vec(bias + n * kLane), Vec<float>{}));
  }
  return !any_lane((probe - probe) != Vec<float>{});
}

struct WinogradScratch {
  float *x, *transformed, *product, *value;
  int64_t bytes;

  WinogradScratch(void* memory, const Conv2dShape& conv, const Pool2dShape& pool, int64_t band) {
    constexpr int64_t kLane = kLanes<float>;
    Scratch scratch(memory);
    x = scratch.take<float>(conv.C * width_input(conv, pool, band).plane());
    transformed = scratch.take<float>(kTransformed * conv.C * kLane);
    product = scratch.take<float>(kTransformed * kLane * kMaxChannelVectors * kLane);
    value = scratch.take<float>(band * pool.Q * round_up(conv.K, kLane));
    bytes = static_cast<int64_t>(scratch.used());
  }
};

template <int kVectors>
void winograd_block(const DirectForward& job, const PaddedPlanes& padded, const WinogradScratch& scratch,
                    const float* windows_x, int64_t windows, int64_t k, const float* weight, float* value,
                    int64_t channels) {
  constexpr int64_t kLane = kLanes<float>;
  multiply_elements<kVectors>(job.conv.C, windows, weight + kVectors * kLane, scratch.transformed, scratch.product);
  for (int64_t p = 0; p < windows; ++p, value += channels) {
    if (inverse_and_pool<kVectors>(scratch.product + p * kVectors * kLane, weight, value)) [[likely]]
      continue;
    for (int64_t b = 0; b < min(kVectors * kLane, job.conv.K - k); ++b)
      value[b] = direct_window(job, windows_x + p, padded, k + b);
  }
}

static void winograd_pool(const DirectForward& job, int64_t n, int64_t band_index, char* workspace) {
  constexpr int64_t kLane = kLanes<float>;
  const Conv2dShape& conv = job.conv;
  const int64_t top = band_index * job.plan.band, rows = min(job.plan.band, job.pool.P - top);
  const int64_t channels = round_up(conv.K, kLane), Q = job.pool.Q;
  const PaddedPlanes padded = width_input(conv, job.pool, job.plan.band);
  const WinogradScratch scratch(workspace, conv, job.pool, job.plan.band);
  copy_halves(conv, job.input, n, 2 * top, padded, scratch.x);

  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < Q; j += kLane) {
      const int64_t windows = min(kLane, Q - j);
      const float* x = scratch.x + 2 * i * padded.pitch + j;
      transform_input(conv, x, padded, scratch.transformed);
      const float* weight = job.packed_weight;
      for (int64_t vector = 0; vector * kLane < channels;) {
        const int block = next_channel_block(channels / kLane - vector);
        float* value = scratch.value + (i * Q + j) * channels + vector * kLane;
        with_constant<1, kMaxChannelVectors>(block, [&](auto vectors) {
          winograd_block<vectors.value>(job, padded, scratch, x, windows, vector * kLane, weight, value, channels);
        });
        weight += block * kLane * (1 + kTransformed * conv.C);
        vector += block;
      }
    }
  }
  scatter_channels(scratch.value, channels, job.output, n, top, rows, job.pool);
}

// Bias, then U[16][C] = G g G^T, of each block of channels in turn; channels past K are zero.
static void pack_winograd(const Conv2dShape& conv, View<const float> weight, const float* bias, float* packed) {
  constexpr int64_t kLane = kLanes<float>;
  const int64_t vectors = ceil_div(conv.K, kLane);
  for (int64_t vector = 0; vector < vectors;) {
    const int block = next_channel_block(vectors - vector);
    const int64_t begin = vector * kLane, width = block * kLane;
    for (int64_t b = 0; b < width; ++b) *packed++ = begin + b < conv.K && bias != nullptr ? bias[begin + b] : 0.0f;
    for (int64_t c = 0; c < conv.C; ++c) {
      for (int64_t v = 0; v < width; v += kLane) {
        Vec<float> g[3][3]{};
        for (int64_t lane = 0; lane < min(kLane, conv.K - begin - v); ++lane)
          for (int r = 0; r < 3; ++r)
            for (int s = 0; s < 3; ++s) g[r][s][lane] = *weight.at(begin + v + lane, c, r, s);
        transform_both_ways<PoolTile::filter(), true, Vec<float>>(
            [&](int i, int j) CNNFAST_INLINE_LAMBDA { return g[i][j]; },
            [&](int i, int j, Vec<float> value) CNNFAST_INLINE_LAMBDA {
              store_vec(packed + ((i * PoolTile::kSize + j) * conv.C + c) * width + v, value);
            });
      }
    }
    packed += kTransformed * conv.C * width;
    vector += block;
  }
}

}  // namespace cnnfast::CNNFAST_ISA
