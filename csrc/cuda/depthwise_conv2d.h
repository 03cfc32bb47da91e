// Depthwise convolution on CUDA, one input channel a group: kernels/depthwise_conv2d.cu.
#pragma once

#include "common/gather_conv.h"
#include "common/number.h"
#include "cuda/device.h"

namespace cnnfast {

// Kernels of up to this many rows and columns.
constexpr int64_t kMostDepthwiseTaps = 5;

static inline bool takes_depthwise(const GatherConv& conv) {
  return conv.C == 1 && conv.h.taps <= kMostDepthwiseTaps && conv.w.taps <= kMostDepthwiseTaps;
}
static inline bool takes_depthwise_backward_weight(const Conv2dShape& s) {
  return s.C == s.G && s.R <= kMostDepthwiseTaps && s.S <= kMostDepthwiseTaps;
}

// See common/gather_conv.h; `output` is over the G * M channels and the [i, j] grid; bias may be null.
template <class T>
void depthwise_conv2d(const char* name, Cuda, const GatherConv& conv, View<const T> source,
                      GatherWeight<const T> weight, const T* bias, bool relu, View<T> output);

// partial[slice][K, 1, R, S]: the sums of each of `slices` slices of the pixels.
template <class T>
void depthwise_conv2d_backward_weight(const char* name, Cuda, const Conv2dShape& s, int64_t slices, View<const T> input,
                                      View<const T> grad_output, Compute<T>* partial);

}  // namespace cnnfast
