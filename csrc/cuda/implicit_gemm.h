// Convolution as a matrix product on CUDA: kernels/implicit_gemm.cu and kernels/implicit_gemm_backward_weight.cu. Sums
// are kept in Compute<T>, in one order.
#pragma once

#include "common/gather_conv.h"
#include "common/number.h"
#include "cuda/device.h"

namespace cnnfast {

// Whether it pays: below, tiles are mostly padding.
static inline bool takes_implicit_gemm(const GatherConv& conv) { return conv.M >= 16 && conv.C * conv.taps() >= 32; }

// See common/gather_conv.h; `output` is over the G * M channels and the [i, j] grid; bias may be null.
template <class T>
void implicit_gemm(const char* name, Cuda, const GatherConv& conv, View<const T> source, GatherWeight<const T> weight,
                   const T* bias, bool relu, View<T> output);

// The weight gradient: tiles of a group's output channels and of its columns (c, tap), slices of the pixels.
struct WeightGradPlan {
  int64_t tiles_k, tiles_c, slices;
};
WeightGradPlan weight_grad_plan(const Conv2dShape& s);

static inline bool takes_implicit_gemm_backward_weight(const Conv2dShape& s) {
  const int64_t kMostPixels = int64_t{1} << 30;  // a row's and a column's numbers are 32-bit
  return s.K / s.G >= 16 && s.C / s.G * s.R * s.S >= 32 && s.P < kMostPixels && s.Q < kMostPixels &&
         max(s.pad_top + s.R * s.dilation_h, s.pad_left + s.S * s.dilation_w) < kMostPixels;
}

// partial[slice][K, C / G, R, S], each slice's sums.
template <class T>
void implicit_gemm_backward_weight(const char* name, Cuda, const Conv2dShape& s, const WeightGradPlan& plan,
                                   View<const T> input, View<const T> grad_output, Compute<T>* partial);

}  // namespace cnnfast
