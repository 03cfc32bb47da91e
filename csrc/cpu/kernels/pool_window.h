// The end of a fused kernel: the four convolution sums of a 2x2 window, one register each, become ReLU of their
// maximum and the one-byte code, lane by lane.
//
// max(relu(z)) == relu(max(z)), so ReLU costs one operation per window instead of four. The first of equal values
// wins, a NaN wins over any number and the last NaN over earlier ones: as in torch's max_pool2d.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// The rare windows with a NaN, redone lane by lane.
template <int kCount>
[[gnu::noinline]] void pool_windows_with_nan(const Vec<float> (*window)[4], Vec<float>* value, Vec<int32_t>* code) {
  for (int n = 0; n < kCount; ++n) {
    for (int lane = 0; lane < kLanes<float>; ++lane) {
      float best = window[n][0][lane];
      int winner = 0;
      for (int i = 1; i < 4; ++i) {
        const float candidate = window[n][i][lane];
        if (candidate > best || candidate != candidate) best = candidate, winner = i;
      }
      value[n][lane] = best <= 0 ? 0.0f : best;
      code[n][lane] = best <= 0 ? kClipped : winner;
    }
  }
}

// kCount registers of windows, each with its sums z00 z01 z10 z11 (upper row first). Codes are the low byte of a lane.
template <int kCount, bool kWithCode>
CNNFAST_INLINE void pool_windows(const Vec<float> (&window)[kCount][4], Vec<float> (&value)[kCount],
                                 Vec<int32_t> (&code)[kCount]) {
  Vec<float> nan_probe{};  // the sum of all: NaN if any is (and, harmlessly, at inf - inf)
#pragma GCC unroll 3
  for (int n = 0; n < kCount; ++n) nan_probe += (window[n][0] + window[n][1]) + (window[n][2] + window[n][3]);
  if (any_lane(nan_probe != nan_probe)) [[unlikely]] {
    // Copies, for an array whose address leaves the function would live in memory from its first sum on.
    Vec<float> sums[kCount][4], values[kCount];
    Vec<int32_t> codes[kCount];
#pragma GCC unroll 3
    for (int n = 0; n < kCount; ++n)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[n][i] = window[n][i];
    pool_windows_with_nan<kCount>(sums, values, codes);
#pragma GCC unroll 3
    for (int n = 0; n < kCount; ++n) value[n] = values[n], code[n] = codes[n];
    return;
  }
  const Vec<float> zero{};
  const Vec<int32_t> one = broadcast<int32_t>(1), two = broadcast<int32_t>(2);
#pragma GCC unroll 3
  for (int n = 0; n < kCount; ++n) {
    const Vec<float> z00 = window[n][0], z01 = window[n][1], z10 = window[n][2], z11 = window[n][3];
    const Vec<float> upper = max_or_second(z01, z00), lower = max_or_second(z11, z10);
    const Vec<float> best = max_or_second(lower, upper);
    value[n] = max_or_second(best, zero);
    if constexpr (kWithCode) {
      const Vec<int32_t> in_lower = lower > upper;
      const Vec<int32_t> winner = in_lower ? (((z11 > z10) & one) | two) : ((z01 > z00) & one);
      code[n] = winner | (best <= zero);  // all ones is kClipped in the low byte
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
