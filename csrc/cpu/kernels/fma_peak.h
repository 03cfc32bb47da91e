// The most fused multiply-adds a core can do: the yardstick of the benchmarks' "share of peak".
#pragma once

#include "cpu/fma_peak.h"
#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Latency 5 times throughput 2 is the most any current core needs in flight; 12 leaves room in 16 registers.
constexpr int kFmaChains = 12;

static float fma_peak(int64_t iterations) {
  Vec<float> sum[kFmaChains];
  // None begins at the fixed point, 1, which the compiler would know to stay the same.
  for (int i = 0; i < kFmaChains; ++i) sum[i] = broadcast(static_cast<float>(i + 2));
  const Vec<float> scale = broadcast(0.999f);
  const Vec<float> step = broadcast(0.001f);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kFmaChains; ++i) sum[i] = sum[i] * scale + step;
  }
  float total = 0;
  for (int i = 0; i < kFmaChains; ++i)
    for (int lane = 0; lane < kLanes<float>; ++lane) total += sum[i][lane];
  return total;
}

constexpr FmaPeakKernel fma_peak_kernel() { return {fma_peak, int64_t{2} * kFmaChains * kLanes<float>}; }

}  // namespace cnnfast::CNNFAST_ISA
