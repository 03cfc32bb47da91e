// Fused convolution + bias + ReLU + max-pool on CUDA: kernels/conv2d_relu_max_pool2d.cu and
// kernels/pool_sparse_backward.cu. float32, few channels, 3x3 or 5x5 kernels of stride 1, 2x2 windows of stride 2.
#pragma once

#include "cuda/device.h"
#include "cuda/plan.h"

namespace cnnfast {

// False if the shape is another. bias [K] may be null, as may code's data.
bool fused_forward(Cuda, const Conv2dShape& conv, const Pool2dShape& pool, View<const float> input,
                   View<const float> weight, const float* bias, View<float> output, View<uint8_t> code);

inline bool takes_pool_sparse(Cuda, const Conv2dShape& conv, const Pool2dShape& pool, bool want_input) {
  return pool_sparse_plan(conv, pool, want_input).fits;
}

// From (pooled gradient, code) alone; what is null is not wanted. A code that is neither kClipped nor in the window
// counts as clipped.
void pool_sparse_backward(Cuda, const Conv2dShape& conv, const Pool2dShape& pool, View<const float> grad_output,
                          View<const uint8_t> code, View<const float> input, View<const float> weight,
                          View<float> grad_input, View<float> grad_weight, float* grad_bias);

}  // namespace cnnfast
