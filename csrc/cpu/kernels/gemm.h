// The matrix product inside `implicit_gemm`: one register tile, and the packing of its right-hand panels.
//
//   tile[rows, kPanelWidth] (+)= a[depth, rows]^T * b[depth, kPanelWidth]
//
// Panels are contiguous and in the type sums are kept in, whatever the tensors' layout and dtype.
#pragma once

#include "cpu/kernels/constant.h"

namespace cnnfast::CNNFAST_ISA {

// 6 rows x 2 registers = 12 sums in flight hide the latency of the FMA; with 2 registers of b and 1 of a they fill
// AVX2's 16.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
template <class A>
constexpr int kPanelWidth = kTileVectors * kLanes<A>;
template <class A>
constexpr int kTileSize = kTileRows * kPanelWidth<A>;
// Depth of a packed panel: 256 deep panels of 6 rows and of 2 registers (6 + 16 KB in float) fill three quarters of L1.
constexpr int64_t kDepth = 256;

// What a tile's sums go through on their way to memory: nothing.
struct KeepSums {
  template <class V>
  CNNFAST_INLINE V operator()(V sum, int, int) const {
    return sum;
  }
};

// A step of a register tile: sum[r][v] += left(r) * right[v], of which left(r) is one number for all lanes.
template <class A, int kRows, int kVectors, class Left>
CNNFAST_INLINE void multiply_step(const Left& left, const A* right, Vec<A> (&sum)[kRows][kVectors]) {
  Vec<A> loaded[kVectors];
  unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
    loaded[v.value] = load_vec(right + v.value * kLanes<A>);
    pin(loaded[v.value]);
  });
  unroll<kRows>([&](auto r) CNNFAST_INLINE_LAMBDA {
    const Vec<A> x = broadcast(left(r.value));
    unroll<kVectors>(
        [&](auto v) CNNFAST_INLINE_LAMBDA { sum[r.value][v.value] = x * loaded[v.value] + sum[r.value][v.value]; });
  });
}

// out[r * out_row + lane] (+)= sum over k of a[r * a_row + k * a_depth] * b[k * b_depth + lane], for kRows rows and
// kVectors registers of lanes. Operands may be packed or lie as they are in a tensor; without `accumulate` the old
// contents of `out` are not read. finish(sum, r, v) is what is stored.
template <class A, int kRows, int kVectors, class Finish = KeepSums>
static void multiply_tile(int64_t depth, const A* a, int64_t a_row, int64_t a_depth, const A* b, int64_t b_depth,
                          A* out, int64_t out_row, bool accumulate, const Finish& finish = {}) {
  Vec<A> sum[kRows][kVectors] = {};
  // A pointer reaches three rows by the processor's scaled addresses; one for each would not leave enough registers.
  constexpr int kReach = 3, kGroups = (kRows + kReach - 1) / kReach;
  const A* group[kGroups];
  unroll<kGroups>([&](auto g) CNNFAST_INLINE_LAMBDA { group[g.value] = a + g.value * kReach * a_row; });
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    multiply_step([&](int r) CNNFAST_INLINE_LAMBDA { return group[r / kReach][r % kReach * a_row]; }, b, sum);
    unroll<kGroups>([&](auto g) CNNFAST_INLINE_LAMBDA { group[g.value] += a_depth; });
    b += b_depth;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      A* to = out + r * out_row + v * kLanes<A>;
      store_vec(to, finish(accumulate ? load_vec(to) + sum[r][v] : sum[r][v], r, v));
    }
  }
}

// tile [rows, kPanelWidth] of packed operands.
template <class A>
static void multiply(int64_t rows, int64_t depth, const A* a, const A* b, A* tile, bool accumulate) {
  with_constant<1, kTileRows>(rows, [&](auto count) {
    multiply_tile<A, count.value, kTileVectors>(depth, a, 1, count.value, b, kPanelWidth<A>, tile, kPanelWidth<A>,
                                                accumulate);
  });
}

// `total` rows cut into panels of nearly equal height: 8 rows are 4 + 4 rather than 6 + 2, whose second tile would
// have too few sums in flight.
struct RowPanels {
  int64_t total, count;

  explicit RowPanels(int64_t rows, int64_t most = kTileRows) : total(rows), count(ceil_div(rows, most)) {}
  int64_t begin(int64_t panel) const { return count == 0 ? 0 : total / count * panel + min(panel, total % count); }
  int64_t rows(int64_t panel) const { return begin(panel + 1) - begin(panel); }
};

// Lanes in panels of two registers, but the last of three where their number is odd: a single one would have too few
// sums in flight.
template <class A>
struct LanePanels {
  int64_t total, vectors, count;

  explicit LanePanels(int64_t lanes)
      : total(lanes), vectors(ceil_div(lanes, kLanes<A>)), count(max<int64_t>(vectors / 2, min<int64_t>(vectors, 1))) {}
  int64_t begin(int64_t panel) const { return 2 * panel * kLanes<A>; }
  int64_t width(int64_t panel) const { return panel + 1 < count ? 2 : vectors - 2 * panel; }
  int64_t lanes(int64_t panel) const { return min(total - begin(panel), width(panel) * kLanes<A>); }
  int64_t padded() const { return vectors * kLanes<A>; }
};

// A run of a panel's lanes that lies contiguous in memory.
template <class A>
struct LaneRun {
  int64_t lane, count;
  const A* const* rows;  // of each k, the row that the run is in, and
  int64_t offset;        // where
};

// panel[k - k_begin][lane + l] = rows[k][offset + l] for each run, in panels of kVectors registers. Whole registers are
// written: what a run writes past its end, the next run or the next k overwrites, so the runs must be in order of their
// lanes, and `panel` must be followed by a register of memory. Whole registers are read, too, unless `exact`.
template <class A, int kVectors>
static void pack_panel(int64_t k_begin, int64_t depth, const LaneRun<A>* runs, int64_t count, bool exact, A* panel) {
  constexpr int64_t kWidth = kVectors * kLanes<A>;
  if (count == 1 && runs->count == kWidth) {
    for (int64_t k = k_begin; k < k_begin + depth; ++k, panel += kWidth) {
      const A* from = runs->rows[k] + runs->offset;
      for (int v = 0; v < kVectors; ++v) store_vec(panel + v * kLanes<A>, load_vec(from + v * kLanes<A>));
    }
    return;
  }
  for (int64_t k = k_begin; k < k_begin + depth; ++k, panel += kWidth) {
    for (const LaneRun<A>* run = runs; run < runs + count; ++run) {
      const A* from = run->rows[k] + run->offset;
      for (int64_t l = 0; l < run->count; l += kLanes<A>) {
        const int64_t left = run->count - l;
        store_vec(panel + run->lane + l, exact && left < kLanes<A> ? load_partial(from + l, left) : load_vec(from + l));
      }
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
