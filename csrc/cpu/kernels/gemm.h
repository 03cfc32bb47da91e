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

template <class A, int kRows>
static void multiply_rows(int64_t depth, const A* a, const A* b, A* tile, bool accumulate) {
  Vec<A> sum[kRows][kTileVectors] = {};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> right[kTileVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) right[v] = load_vec(b + v * kLanes<A>);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> left = broadcast(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) sum[r][v] = left * right[v] + sum[r][v];
    }
    a += kRows;
    b += kPanelWidth<A>;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      A* out = tile + r * kPanelWidth<A> + v * kLanes<A>;
      store_vec(out, accumulate ? load_vec(out) + sum[r][v] : sum[r][v]);
    }
  }
}

// tile [rows, kPanelWidth]; without `accumulate` its old contents are not read.
template <class A>
static void multiply(int64_t rows, int64_t depth, const A* a, const A* b, A* tile, bool accumulate) {
  with_constant<1, kTileRows>(rows, [&](auto count) { multiply_rows<A, count.value>(depth, a, b, tile, accumulate); });
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
