// Contract of the peak measurement: body in kernels/fma_peak.h, op in info.cpp.
#pragma once

#include <cstdint>

namespace cnnfast {

struct FmaPeakKernel {
  // Runs `iterations` rounds of independent fused multiply-adds; returns their sum, so that nothing is optimised away.
  float (*run)(int64_t iterations);
  // Floating point operations in one round.
  int64_t flops_per_iteration;
};

}  // namespace cnnfast
