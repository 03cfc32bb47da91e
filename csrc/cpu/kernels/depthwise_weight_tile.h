// The register tile of a depthwise convolution's weight gradient, and the rows of grad_output that it walks, in a slab
// (depthwise_slab.h) or in images of channels_last:
//
//   sums[s * R + r] += sum over i, j of dy[i][j] * x[i * step + r][j * step + s]
//
// where every element is a register of neighbouring channels. A tile is 4 rows of some columns: some columns of taps
// are summed at a time, every tap in a register of its own.
#pragma once

#include "cpu/kernels/depthwise_tile.h"

namespace cnnfast::CNNFAST_ISA {

// Columns of a tile: as many as make loading and storing the sums cheap, few enough that images are read in the order
// of memory.
constexpr int64_t kDepthwiseWeightColumns = 8;

// Some rows of grad_output, and the rows of input that they meet.
template <class A>
struct DepthwiseWeightRows {
  DepthwiseSource<A> x;  // at the first tap of the first output
  DepthwiseSource<A> dy;
  int64_t step_w, S;
  int64_t rows, columns, channels;  // at least as many channels as a register has lanes
  A* sums;                          // of each block of channels: R * S registers, column by column
};

// Some columns of kRows rows of dy, for kTaps columns of taps of which x and sums are at the first; `tap` is its place.
template <int kR, int kStep, int kTaps, int kRows, bool kEdge, class A>
CNNFAST_INLINE void depthwise_weight_tile(const DepthwiseWeightRows<A>& job, const A* x, const A* dy, int64_t count,
                                          const Inside& rows, const Inside& columns, int64_t tap, A* sums) {
  Vec<A> sum[kTaps][kR] = {};
  for (int64_t q = 0; q < count; ++q, x += job.step_w * job.x.pixel, dy += job.dy.pixel) {
    Vec<A> g[kRows];
    unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
      g[t.value] = load_vec(dy + t.value * job.dy.pitch);
      pin(g[t.value]);
    });
    const A* row = x;
    unroll<(kRows - 1) * kStep + kR>([&](auto i) CNNFAST_INLINE_LAMBDA {
      if (!kEdge || rows.has(i.value)) {
        unroll<kTaps>([&](auto j) CNNFAST_INLINE_LAMBDA {
          if (kEdge && !columns.has(q * job.step_w + tap + j.value)) return;
          const Vec<A> value = load_vec(row + j.value * job.x.pixel);
          unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
            constexpr int r = i.value - t.value * kStep;
            if constexpr (r >= 0 && r < kR) sum[j.value][r] += value * g[t.value];
          });
        });
      }
      row += job.x.pitch;
    });
  }
  unroll<kTaps>([&](auto j) CNNFAST_INLINE_LAMBDA {
    unroll<kR>([&](auto r) CNNFAST_INLINE_LAMBDA {
      A* to = sums + (j.value * kR + r.value) * kLanes<A>;
      store_vec(to, load_vec(to) + sum[j.value][r.value]);
    });
  });
}

// Rows [i, i + kRows) and columns [j, j + count) of dy, all channels, the last register of which overlaps its
// neighbour.
template <int kR, int kStep, int kRows, class A>
static void depthwise_weight_pixels(const DepthwiseWeightRows<A>& job, int64_t i, int64_t j, int64_t count) {
  // As many columns of taps at a time as leave registers for four rows of grad_output.
  constexpr int kTaps = kR == 3 ? 3 : kR == 5 ? 2 : 1;
  const DepthwiseSource<A> window = job.x.moved(i * kStep, j * job.step_w);
  const Inside rows(window.row, job.x.H), columns(window.column, job.x.W);
  const A *x = window.place(), *dy = job.dy.moved(i, j).place();
  const auto all_channels = [&](auto edge) CNNFAST_INLINE_LAMBDA {
    constexpr bool kEdge = edge.value != 0;
    A* sums = job.sums;
    for (int64_t c = 0; c < job.channels; c += kLanes<A>, sums += kR * job.S * kLanes<A>) {
      c = min(c, job.channels - kLanes<A>);
      int64_t s = 0;
      for (; s + kTaps <= job.S; s += kTaps) {
        depthwise_weight_tile<kR, kStep, kTaps, kRows, kEdge>(job, x + s * job.x.pixel + c, dy + c, count, rows,
                                                              columns, s, sums + s * kR * kLanes<A>);
      }
      if constexpr (kTaps > 1) {
        for (; s < job.S; ++s) {
          depthwise_weight_tile<kR, kStep, 1, kRows, kEdge>(job, x + s * job.x.pixel + c, dy + c, count, rows, columns,
                                                            s, sums + s * kR * kLanes<A>);
        }
      }
    }
  };
  if constexpr (kRows == kDepthwiseRows) {
    if (rows.has_all((kRows - 1) * kStep + kR) && columns.has_all((count - 1) * job.step_w + job.S))
      return all_channels(Constant<0>{});
  }
  all_channels(Constant<1>{});
}

template <int kR, int kStep, class A>
static void depthwise_weight_rows(const DepthwiseWeightRows<A>& job) {
  const auto row = [&](auto rows, int64_t i) {
    for (int64_t j = 0; j < job.columns; j += kDepthwiseWeightColumns)
      depthwise_weight_pixels<kR, kStep, rows.value>(job, i, j, min(kDepthwiseWeightColumns, job.columns - j));
  };
  int64_t i = 0;
  for (; i + kDepthwiseRows <= job.rows; i += kDepthwiseRows) row(Constant<kDepthwiseRows>{}, i);
  for (; i < job.rows; ++i) row(Constant<1>{}, i);
}

template <class A>
static void depthwise_weight_rows(int64_t R, int64_t step, const DepthwiseWeightRows<A>& job) {
  with_constant<1, 2>(step, [&](auto stride) {
    if (R == 3) depthwise_weight_rows<3, stride.value>(job);
    if (R == 5) depthwise_weight_rows<5, stride.value>(job);
    if (R == 7) depthwise_weight_rows<7, stride.value>(job);
  });
}

}  // namespace cnnfast::CNNFAST_ISA
