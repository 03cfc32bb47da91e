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

// `size` cut in nearly equal parts of at most `most`; the size of a part.
static inline int64_t even_part(int64_t size, int64_t most) {
  return size <= most ? size : ceil_div(size, ceil_div(size, most));
}

// out[r * out_row + lane] (+)= sum over k of a[r * a_row + k * a_depth] * b[k * b_depth + lane], for kRows rows and
// kVectors registers of lanes. Operands may be packed or lie as they are in a tensor; without `accumulate` the old
// contents of `out` are not read.
template <class A, int kRows, int kVectors>
static void multiply_tile(int64_t depth, const A* a, int64_t a_row, int64_t a_depth, const A* b, int64_t b_depth,
                          A* out, int64_t out_row, bool accumulate) {
  Vec<A> sum[kRows][kVectors] = {};
  // Two pointers reach six rows by the processor's scaled addresses; six would not leave enough registers.
  const A* upper = kRows > 3 ? a + 3 * a_row : a;
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> right[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      right[v] = load_vec(b + v * kLanes<A>);
      pin(right[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> left = broadcast(r < 3 ? a[r * a_row] : upper[(r - 3) * a_row]);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sum[r][v] = left * right[v] + sum[r][v];
    }
    a += a_depth;
    upper += a_depth;
    b += b_depth;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      A* to = out + r * out_row + v * kLanes<A>;
      store_vec(to, accumulate ? load_vec(to) + sum[r][v] : sum[r][v]);
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

  explicit RowPanels(int64_t rows) : total(rows), count(ceil_div(rows, kTileRows)) {}
  int64_t begin(int64_t panel) const { return count == 0 ? 0 : total / count * panel + min(panel, total % count); }
};

// A run of a panel's lanes that lies contiguous in the staged source.
struct LaneRun {
  int64_t lane, count;
  int64_t offset;
};

// panel[k][lane + l] = staged[offset + depth_offsets[k] + l] for each run. Whole registers are copied: what a run
// writes past its end, the next run or the next k overwrites, so the runs must be in order of their lanes, and both
// `panel` and `staged` must be followed by a panel's width of memory.
template <class A>
static void pack_panel(const A* staged, const int64_t* depth_offsets, int64_t depth, const LaneRun* runs, int64_t count,
                       A* panel) {
  if (count == 1 && runs->count > kLanes<A>) {
    const A* source = staged + runs->offset;
    for (int64_t k = 0; k < depth; ++k, panel += kPanelWidth<A>) {
      for (int v = 0; v < kTileVectors; ++v)
        store_vec(panel + v * kLanes<A>, load_vec(source + depth_offsets[k] + v * kLanes<A>));
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k, panel += kPanelWidth<A>) {
    const A* source = staged + depth_offsets[k];
    for (int64_t i = 0; i < count; ++i) {
      const LaneRun& run = runs[i];
      for (int64_t l = 0; l < run.count; l += kLanes<A>)
        store_vec(panel + run.lane + l, load_vec(source + run.offset + l));
    }
  }
}

// Hands out pieces of a task's scratch. With no memory it only adds up what would be needed, so that the size asked
// for and the pieces taken come from the same code.
class Scratch {
 public:
  explicit Scratch(void* memory) : base_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace cnnfast::CNNFAST_ISA
