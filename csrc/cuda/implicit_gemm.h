// Convolution as a matrix product on CUDA. implicit_gemm*: kernels/implicit_gemm*.cu on the ordinary arithmetic units,
// with sums in Compute<T>; implicit_gemm_mma*: kernels/implicit_gemm_mma*.cu on tensor cores, where float32 is rounded
// to tf32. Sums have one order.
#pragma once

#include "common/gather_conv.h"
#include "cuda/chunks.h"
#include "cuda/plan.h"

namespace cnnfast {

// See common/gather_conv.h; `output` is over the G * M channels and the [i, j] grid; bias may be null.
template <class T>
void implicit_gemm(const char* name, Cuda, const GatherConv& conv, View<const T> source, GatherWeight<const T> weight,
                   const T* bias, bool relu, View<T> output);
template <class T>
void implicit_gemm_mma(const char* name, Cuda, const GatherConv& conv, const Chunks<T>& source,
                       GatherWeight<const T> weight, const T* bias, bool relu, View<T> output);

// The weight gradient: partial[slice][K, C / G, R, S], each slice's sums. Chunks of grad_output must be dense.
template <class T>
void implicit_gemm_backward_weight(const char* name, Cuda, const Conv2dShape& s, const WeightGradPlan& plan,
                                   View<const T> input, View<const T> grad_output, Compute<T>* partial);
template <class T>
void implicit_gemm_mma_backward_weight(const char* name, Cuda, const Conv2dShape& s, const WeightGradPlan& plan,
                                       const Chunks<T>& input, const Chunks<T>& grad_output, float* partial);

// Whether this device, and what was compiled for it, has tensor cores that the kernels use.
bool has_tensor_cores();

}  // namespace cnnfast
