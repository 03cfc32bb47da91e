// Direct convolution + bias + ReLU + 2x2 max-pool, vectorised over pooled columns: for few channels on wide maps, where
// channels would leave registers half empty (the lecture's first layer: 1 -> 12 channels, 28 columns).
//
// The input's even and odd columns are stored apart. The four sums of a pool window, at output columns 2j and 2j + 1,
// then are four registers over j, fed by plain loads, and the maximum needs no shuffle:
//   input column 2j + b + s lies in half (b + s) % 2 at j + (b + s) / 2.
// A tile is kChannels output channels of one register of windows: 4 * kChannels sums, which share 4 input loads per
// tap.
#pragma once

#include "cpu/conv2d_relu_max_pool2d.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/padded_planes.h"
#include "cpu/kernels/pool_window.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kWidthChannels = 3;

// Padded input of a band of pooled rows. Each row is two halves.
static PaddedPlanes width_input(const Conv2dShape& conv, const Pool2dShape& pool, int64_t band) {
  const int64_t columns = round_up(pool.Q, kLanes<float>) + ceil_div(conv.S, int64_t{2});
  return {2 * band + conv.R - 1, 2 * round_up(columns, kLanes<float>)};
}

// `x` points at the window row's first input row, at the register's first column; sums start at the bias.
template <int kChannels, int kSize, bool kWithCode>
CNNFAST_INLINE void direct_width_tile(const Conv2dShape& conv, const float* x, int64_t half, int64_t plane,
                                      const float* weight, float* value, uint8_t* code, int64_t pooled_plane) {
  Vec<float> sum[kChannels][4];
  unroll<kChannels>([&](auto k) CNNFAST_INLINE_LAMBDA {
    unroll<4>([&](auto p) CNNFAST_INLINE_LAMBDA { sum[k.value][p.value] = broadcast(weight[k.value]); });
  });
  weight += kChannels;

  const auto tap = [&](const float* at, int64_t s) CNNFAST_INLINE_LAMBDA {
    Vec<float> w[kChannels];
    unroll<kChannels>([&](auto k) CNNFAST_INLINE_LAMBDA {
      w[k.value] = broadcast(weight[k.value]);
      pin(w[k.value]);
    });
    weight += kChannels;
    unroll<4>([&](auto p) CNNFAST_INLINE_LAMBDA {
      const int64_t column = s + p.value % 2;
      const Vec<float> xp = load_vec(at + (p.value / 2 * 2 + column % 2) * half + column / 2);
      unroll<kChannels>([&](auto k) CNNFAST_INLINE_LAMBDA { sum[k.value][p.value] += w[k.value] * xp; });
    });
    forget_loads();
  };
  for (int64_t c = 0;;) {
    const float* row = x;
    if constexpr (kSize > 0) {
      unroll<kSize>([&](auto) CNNFAST_INLINE_LAMBDA {
        unroll<kSize>([&](auto s) CNNFAST_INLINE_LAMBDA { tap(row, s.value); });
        row += 2 * half;
        hold(row);
      });
    } else {
      for (int64_t r = 0; r < conv.R; ++r, row += 2 * half)
        for (int64_t s = 0; s < conv.S; ++s) tap(row, s);
    }
    if (++c >= conv.C) break;
    x += plane;
  }
  Vec<float> pooled[kChannels];
  Vec<int32_t> winner[kChannels];
  pool_windows<kChannels, kWithCode>(sum, pooled, winner);
  unroll<kChannels>([&](auto k) CNNFAST_INLINE_LAMBDA {
    store_vec(value + k.value * pooled_plane, pooled[k.value]);
    if constexpr (kWithCode) store_low_bytes(code + k.value * pooled_plane, winner[k.value]);
  });
}

// Where tiles store the pooled rows of a block of channels: whole registers, which reach past a row's end.
struct WidthOutput {
  float* value;   // [channel][row][pitch]
  uint8_t* code;  // the same
  int64_t pitch, plane;

  // Staged, with rows padded to whole registers.
  static WidthOutput staged(const Pool2dShape& pool, int64_t band, char* base) {
    const int64_t pitch = round_up(pool.Q, kLanes<float>), plane = band * pitch;
    float* value = reinterpret_cast<float*>(base);
    return {value, reinterpret_cast<uint8_t*>(value + kWidthChannels * plane), pitch, plane};
  }
  static int64_t staged_bytes(const Pool2dShape& pool, int64_t band) {
    return kWidthChannels * staged(pool, band, nullptr).plane * static_cast<int64_t>(sizeof(float) + 1);
  }
  // The tensors themselves. Their rows must be written in order, for what reaches past one belongs to the next.
  static WidthOutput in_place(const DirectForward& job, int64_t n, int64_t k, int64_t top) {
    uint8_t* code = job.code.data != nullptr ? job.code.at(n, k, top, 0) : nullptr;
    return {job.output.at(n, k, top, 0), code, job.pool.Q, job.output.stride.c};
  }
  static bool fits_in_place(const DirectForward& job) {
    const Strides &y = job.output.stride, &q = job.code.stride;
    const int64_t Q = job.pool.Q;
    const bool dense = y.w == 1 && y.h == Q && round_up(Q, kLanes<float>) <= 2 * Q;
    return dense && (job.code.data == nullptr || (q.w == 1 && q.h == Q && q.c == y.c));
  }
};

template <class T>
void store_rows(const T* from, int64_t pitch, View<T> to, int64_t n, int64_t k, int64_t top, int64_t rows, int64_t Q) {
  for (int64_t i = 0; i < rows; ++i, from += pitch) {
    T* out = to.at(n, k, top + i, 0);
    if (to.stride.w == 1) {
      copy_row(from, out, Q);
    } else {
      for (int64_t j = 0; j < Q; ++j) out[j * to.stride.w] = from[j];
    }
  }
}

// All windows of channels [k, k + kChannels).
template <int kChannels, int kSize, bool kWithCode>
void direct_width_block(const DirectForward& job, const PaddedPlanes& padded, const float* x, const WidthOutput& staged,
                        int64_t n, int64_t top, int64_t rows, int64_t k, const float* weight) {
  const int64_t half = padded.pitch / 2, plane = padded.plane(), Q = job.pool.Q;
  // Beyond the band's last row is another task's, or no memory at all: it is staged.
  const int64_t direct = WidthOutput::fits_in_place(job) ? rows - 1 : 0;
  const auto compute = [&](const WidthOutput& out, int64_t begin, int64_t end) CNNFAST_INLINE_LAMBDA {
    for (int64_t i = begin, at = 0; i < end; ++i, at += out.pitch)
      for (int64_t j = 0; j < Q; j += kLanes<float>)
        direct_width_tile<kChannels, kSize, kWithCode>(job.conv, x + 4 * i * half + j, half, plane, weight,
                                                       out.value + at + j, out.code + at + j, out.plane);
  };
  compute(WidthOutput::in_place(job, n, k, top), 0, direct);
  compute(staged, direct, rows);
  for (int b = 0; b < kChannels; ++b) {
    store_rows(staged.value + b * staged.plane, staged.pitch, job.output, n, k + b, top + direct, rows - direct, Q);
    if constexpr (kWithCode)
      store_rows(staged.code + b * staged.plane, staged.pitch, job.code, n, k + b, top + direct, rows - direct, Q);
  }
}

template <bool kWithCode>
void direct_width(const DirectForward& job, int64_t n, int64_t band_index, char* workspace) {
  const Conv2dShape& conv = job.conv;
  const int64_t top = band_index * job.plan.band, rows = min(job.plan.band, job.pool.P - top);
  const PaddedPlanes padded = width_input(conv, job.pool, job.plan.band);
  float* x = reinterpret_cast<float*>(workspace);
  const WidthOutput staged =
      WidthOutput::staged(job.pool, job.plan.band, workspace + round_up(job.conv.C * padded.plane(), 16) * 4);
  copy_halves(conv, job.input, n, 2 * top, padded, x);
  const bool unit = conv.R == kUnrolledSize && conv.S == kUnrolledSize;
  const float* weight = job.packed_weight;
  for (int64_t k = 0; k < conv.K;) {
    const int64_t block = min<int64_t>(kWidthChannels, conv.K - k);
    with_tile<kWidthChannels>(block, unit, [&](auto channels, auto size) {
      direct_width_block<channels.value, size.value, kWithCode>(job, padded, x, staged, n, top, rows, k, weight);
    });
    weight += block * (1 + conv.C * conv.R * conv.S);
    k += block;
  }
}

// Bias, then [C][R][S] taps, of each block of channels in turn.
static void pack_width(const Conv2dShape& conv, View<const float> weight, const float* bias, float* packed) {
  for (int64_t begin = 0; begin < conv.K; begin += kWidthChannels) {
    const int64_t end = min(begin + kWidthChannels, conv.K);
    for (int64_t k = begin; k < end; ++k) *packed++ = bias != nullptr ? bias[k] : 0.0f;
    for (int64_t c = 0; c < conv.C; ++c)
      for (int64_t r = 0; r < conv.R; ++r)
        for (int64_t s = 0; s < conv.S; ++s)
          for (int64_t k = begin; k < end; ++k) *packed++ = *weight.at(k, c, r, s);
  }
}

}  // namespace cnnfast::CNNFAST_ISA
