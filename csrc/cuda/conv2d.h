// Convolution on CUDA: kernels/conv2d.cu.
#pragma once

#include "common/number.h"
#include "cuda/device.h"

namespace cnnfast {

// bias [K] may be null; there is no residual.
template <class T>
void conv2d_forward(Cuda, const Conv2dShape& s, View<const T> input, View<const T> weight, const T* bias,
                    const Epilogue<T>& epilogue, View<T> output);

// All gradients in one pass where there is a kernel for that: none yet.
template <class T>
bool conv2d_relu_backward(Cuda, const Conv2dShape&, View<const T>, View<const T>, View<const T>, View<const T>, View<T>,
                          View<T>, T*) {
  return false;
}

// Also the forward pass of the transposed convolution, whose bias [C] may be null.
template <class T>
void conv2d_backward_input(Cuda, const Conv2dShape& s, View<const T> grad_output, View<const T> weight, const T* bias,
                           View<T> grad_input);

template <class T>
void conv2d_backward_weight(Cuda, const Conv2dShape& s, View<const T> input, View<const T> grad_output,
                            View<T> grad_weight);

// grad_bias[k] = sum of grad_output [N, K, P, Q] over n, p and q.
template <class T>
void sum_over_pixels(Cuda, int64_t N, int64_t K, int64_t P, int64_t Q, View<const T> grad_output, T* grad_bias);

}  // namespace cnnfast
