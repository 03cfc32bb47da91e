// The register tile of a depthwise convolution's weight gradient in NCHW, vectorised over output columns:
//
//   sums[s * R + r] += sum over i, j of dy[i][j] * x[i * step + r][j * step + s]
//
// A tile is 4 rows of one register of dy. Some columns of taps are summed at a time, every tap in a register of its own
// for the whole plane, whose lanes are added up at its end.
#pragma once

#include "cpu/kernels/depthwise_columns.h"

namespace cnnfast::CNNFAST_ISA {

// A plane of grad_output, and the input that it meets.
struct DepthwiseColumnsWeight {
  DepthwiseSource<float> x;  // at the first tap of the first output
  int64_t S;
  const float* dy;
  int64_t dy_pitch, rows, columns;
};

// Adds kRows rows of a register of dy, of which `count` lanes are not yet summed; x is at the first tap of its first
// element, for kTaps columns of taps from s on.
template <int kR, int kStep, int kTaps, bool kEdge, int kRows>
CNNFAST_INLINE void depthwise_columns_weight_tile(const DepthwiseSource<float>& x, int64_t s, const float* dy,
                                                  int64_t dy_pitch, int64_t count, Vec<float> (&sum)[kTaps][kR]) {
  const Inside rows(x.row, x.H);
  Inside columns(x.column, x.W);
  Vec<float> g[kRows];
  unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
    const float* from = dy + t.value * dy_pitch;
    g[t.value] = kEdge ? LaneMask(0, count).load(from) : load_vec(from);
    pin(g[t.value]);
  });
  unroll<kTaps>([&](auto tap) CNNFAST_INLINE_LAMBDA {
    // Beyond the lanes of dy x may be anything: not a number times zero is not zero.
    Inside read = columns;
    read.last = min(read.last, s + tap.value + kStep * count);
    const ColumnMask<kStep> mask(read, s + tap.value);
    const float* from = x.place() + s + tap.value;
    unroll<(kRows - 1) * kStep + kR>([&](auto i) CNNFAST_INLINE_LAMBDA {
      if (!kEdge || rows.has(i.value)) {
        const Vec<float> value = kEdge ? mask.load(from) : load_lanes<kStep, Vec<float>>(from);
        unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
          constexpr int r = i.value - t.value * kStep;
          if constexpr (r >= 0 && r < kR) sum[tap.value][r] += value * g[t.value];
        });
      }
      from += x.pitch;
    });
  });
}

template <int kR, int kStep, int kTaps>
static void depthwise_columns_weight(const DepthwiseColumnsWeight& job, int64_t s, float* sums) {
  Vec<float> sum[kTaps][kR] = {};
  const auto row = [&](auto rows, int64_t i) CNNFAST_INLINE_LAMBDA {
    constexpr int kRows = rows.value;
    for (int64_t j = 0; j < job.columns; j += kLanes<float>) {
      const DepthwiseSource<float> x = job.x.moved(i * kStep, j * kStep);
      const float* dy = job.dy + i * job.dy_pitch + j;
      const int64_t count = job.columns - j;
      if constexpr (kRows == kDepthwiseRows) {
        if (count >= kLanes<float> && reads_inside<kRows, kStep>(x, kR, job.S)) {
          depthwise_columns_weight_tile<kR, kStep, kTaps, false, kRows>(x, s, dy, job.dy_pitch, count, sum);
          continue;
        }
      }
      depthwise_columns_weight_tile<kR, kStep, kTaps, true, kRows>(x, s, dy, job.dy_pitch, count, sum);
    }
  };
  int64_t i = 0;
  for (; i + kDepthwiseRows <= job.rows; i += kDepthwiseRows) row(Constant<kDepthwiseRows>{}, i);
  for (; i < job.rows; ++i) row(Constant<1>{}, i);
  unroll<kTaps>([&](auto tap) CNNFAST_INLINE_LAMBDA {
    unroll<kR>([&](auto r)
                   CNNFAST_INLINE_LAMBDA { sums[tap.value * kR + r.value] += lane_sum(sum[tap.value][r.value]); });
  });
}

template <int kR, int kStep>
static void depthwise_columns_weight(const DepthwiseColumnsWeight& job, float* sums) {
  // As many columns of taps at a time as leave registers for four rows of grad_output.
  constexpr int kTaps = kR == 3 ? 3 : 1;
  int64_t s = 0;
  for (; s + kTaps <= job.S; s += kTaps) depthwise_columns_weight<kR, kStep, kTaps>(job, s, sums + s * kR);
  for (; s < job.S; ++s) depthwise_columns_weight<kR, kStep, 1>(job, s, sums + s * kR);
}

static void depthwise_columns_weight(int64_t R, int64_t step, const DepthwiseColumnsWeight& job, float* sums) {
  with_constant<1, 2>(step, [&](auto stride) {
    if (R == 3) depthwise_columns_weight<3, stride.value>(job, sums);
    if (R == 5) depthwise_columns_weight<5, stride.value>(job, sums);
    if (R == 7) depthwise_columns_weight<7, stride.value>(job, sums);
  });
}

}  // namespace cnnfast::CNNFAST_ISA
