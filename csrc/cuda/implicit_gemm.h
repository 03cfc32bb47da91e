// Convolution as a matrix product on CUDA: kernels/implicit_gemm.cu. Sums are kept in Compute<T>, in one order.
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

}  // namespace cnnfast
