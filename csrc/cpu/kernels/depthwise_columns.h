// The register tile of depthwise convolution in NCHW, vectorised over output columns: planes are read and written in
// place, and nothing is transposed.
//
//   out[i][j] = bias + sum over r, s of weight[r][s] * x[i * step + r][j * step + s]
//
// A tile is 4 rows of one register: what several of its outputs read is loaded once, with a step of 2 as every other
// element of two registers. A row's last register overlaps its neighbour; only rows shorter than one are stored in
// part. Rows of padding are skipped, columns are zeros: an infinite weight makes NaN of these, as in the dense kernels.
#pragma once

#include "cpu/kernels/depthwise_tile.h"
#include "cpu/kernels/lane_mask.h"
#include "cpu/kernels/storage.h"

namespace cnnfast::CNNFAST_ISA {

// The columns of a tap that a register of outputs reads, kStep apart, as far as they lie inside.
template <int kStep>
class ColumnMask {
 public:
  ColumnMask(const Inside& columns, int64_t tap)
      : low_(columns.first - tap, columns.last - tap), high_(columns.first - tap - kHigh, columns.last - tap - kHigh) {}
  CNNFAST_INLINE Vec<float> load(const float* p) const {
    if constexpr (kStep == 1) return low_.load(p);
    return every_second_overlapped(low_.load(p), high_.load(p + kHigh));
  }

 private:
  static constexpr int64_t kHigh = kLanes<float> - 1;
  LaneMask low_, high_;
};

// Whether a register of kRows outputs reads nothing but what lies inside.
template <int kRows, int kStep>
CNNFAST_INLINE bool reads_inside(const DepthwiseSource<float>& x, int64_t R, int64_t S) {
  return Inside(x.row, x.H).has_all((kRows - 1) * kStep + R) &&
         Inside(x.column, x.W).has_all((kLanes<float> - 1) * kStep + S);
}

// sum[t] = bias + sum over r, s for kRows outputs below one another, of a register of columns, of which x is at the
// first tap: with kEdge that may lie outside. Weights follow the bias, column by column; kS columns are unrolled, S
// where that is 0 are looped over.
template <int kR, int kS, int kStep, bool kEdge, int kRows>
CNNFAST_INLINE void depthwise_columns_sums(const DepthwiseSource<float>& x, int64_t S, const float* weight,
                                           Vec<float> (&sum)[kRows]) {
  const Inside rows(x.row, x.H), columns(x.column, x.W);
  unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA { sum[t.value] = broadcast(weight[0]); });
  const auto column = [&](int64_t s) CNNFAST_INLINE_LAMBDA {
    const float* from = x.place() + s;
    const ColumnMask<kStep> mask(columns, s);
    Vec<float> w[kR];
    unroll<kR>([&](auto r) CNNFAST_INLINE_LAMBDA { w[r.value] = broadcast(weight[1 + s * kR + r.value]); });
    unroll<(kRows - 1) * kStep + kR>([&](auto i) CNNFAST_INLINE_LAMBDA {
      if (!kEdge || rows.has(i.value)) {
        Vec<float> value = kEdge ? mask.load(from) : load_lanes<kStep, Vec<float>>(from);
        pin(value);
        unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
          constexpr int r = i.value - t.value * kStep;
          if constexpr (r >= 0 && r < kR) sum[t.value] += w[r] * value;
        });
      }
      from += x.pitch;
    });
  };
  if constexpr (kS > 0) {
    unroll<kS>([&](auto s) CNNFAST_INLINE_LAMBDA { column(s.value); });
  } else {
    for (int64_t s = 0; s < S; ++s) column(s);
  }
}

// Some rows of outputs of a plane.
struct DepthwiseColumns {
  DepthwiseSource<float> x;  // at the first tap of the first output
  int64_t S;
  const float* weight;  // bias, then the taps column by column
  Activation activation;
  float* out;
  int64_t out_pitch, rows, columns;
};

// Calls tile(Constant<rows>{}, i, j) for tiles of all rows and columns; the last ones overlap their neighbours.
template <class Tile>
CNNFAST_INLINE void for_each_columns_tile(int64_t rows, int64_t columns, const Tile& tile) {
  const auto all_rows = [&](auto height) CNNFAST_INLINE_LAMBDA {
    for (int64_t i = 0; i < rows; i += height.value)
      for (int64_t j = 0; j < columns; j += kLanes<float>)
        tile(height, min(i, rows - height.value), max<int64_t>(0, min(j, columns - kLanes<float>)));
  };
  if (rows < kDepthwiseRows) {
    all_rows(Constant<1>{});
  } else {
    all_rows(Constant<kDepthwiseRows>{});
  }
}

// As much of a register as `count` says.
CNNFAST_INLINE void store_columns(float* to, Vec<float> v, int64_t count) {
  if (count >= kLanes<float>) {
    store_vec(to, v);
  } else if (count > 0) {
    store_partial(to, v, count);
  }
}

template <int kR, int kS, int kStep>
static void depthwise_columns_rows(const DepthwiseColumns& job) {
  const Clip<float> clip(job.activation);
  for_each_columns_tile(job.rows, job.columns, [&](auto rows, int64_t i, int64_t j) CNNFAST_INLINE_LAMBDA {
    constexpr int kRows = rows.value;
    const DepthwiseSource<float> x = job.x.moved(i * kStep, j * kStep);
    const auto tile = [&](auto edge) CNNFAST_INLINE_LAMBDA {
      Vec<float> sum[kRows];
      depthwise_columns_sums<kR, kS, kStep, edge.value != 0>(x, job.S, job.weight, sum);
      unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
        float* to = job.out + (i + t.value) * job.out_pitch + j;
        store_columns(to, clip(sum[t.value]), edge.value != 0 ? job.columns : kLanes<float>);
      });
    };
    // The smaller tiles are of odd ends: one body for them all.
    if constexpr (kRows == kDepthwiseRows) {
      if (job.columns >= kLanes<float> && reads_inside<kRows, kStep>(x, kR, job.S)) return tile(Constant<0>{});
    }
    tile(Constant<1>{});
  });
}

static void depthwise_columns_rows(int64_t R, int64_t step, const DepthwiseColumns& job) {
  with_constant<1, 2>(step, [&](auto stride) {
    if (R == 3 && job.S == 3) return depthwise_columns_rows<3, 3, stride.value>(job);
    if (R == 3) return depthwise_columns_rows<3, 0, stride.value>(job);
    if (R == 5) return depthwise_columns_rows<5, 0, stride.value>(job);
    depthwise_columns_rows<7, 0, stride.value>(job);
  });
}

// The input gradient with a stride of 2: outputs 2j are of `even`, outputs 2j + 1 of `odd`, each a convolution with a
// step of 1 over the same rows; `columns` is of both.
template <int kR>
static void depthwise_columns_pairs(const DepthwiseColumns& even, const DepthwiseColumns& odd, int64_t columns) {
  for_each_columns_tile(even.rows, even.columns, [&](auto rows, int64_t i, int64_t j) CNNFAST_INLINE_LAMBDA {
    constexpr int kRows = rows.value;
    const DepthwiseSource<float> x0 = even.x.moved(i, j), x1 = odd.x.moved(i, j);
    const int64_t left = columns - 2 * j;
    const auto tile = [&](auto edge) CNNFAST_INLINE_LAMBDA {
      Vec<float> sum0[kRows], sum1[kRows];
      depthwise_columns_sums<kR, 0, 1, edge.value != 0>(x0, even.S, even.weight, sum0);
      depthwise_columns_sums<kR, 0, 1, edge.value != 0>(x1, odd.S, odd.weight, sum1);
      unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
        float* to = even.out + (i + t.value) * even.out_pitch + 2 * j;
        const int64_t count = edge.value != 0 ? left : 2 * kLanes<float>;
        store_columns(to, in_turn<0>(sum0[t.value], sum1[t.value]), count);
        store_columns(to + kLanes<float>, in_turn<kLanes<float>>(sum0[t.value], sum1[t.value]), count - kLanes<float>);
      });
    };
    if constexpr (kRows == kDepthwiseRows) {
      if (left >= 2 * kLanes<float> && reads_inside<kRows, 1>(x0, kR, even.S) && reads_inside<kRows, 1>(x1, kR, odd.S))
        return tile(Constant<0>{});
    }
    tile(Constant<1>{});
  });
}

// Kernels of 3, 5 and 7 rows have 1 to 4 of each parity.
static void depthwise_columns_pairs(int64_t R, const DepthwiseColumns& even, const DepthwiseColumns& odd,
                                    int64_t columns) {
  with_constant<1, 4>(R, [&](auto rows) { depthwise_columns_pairs<rows.value>(even, odd, columns); });
}

}  // namespace cnnfast::CNNFAST_ISA
