// conv2d on the CPU as its ops call it: which algorithm takes a shape, on all threads.
#pragma once

#include "cpu/depthwise_conv2d.h"
#include "cpu/device.h"
#include "cpu/direct_conv2d.h"
#include "cpu/implicit_gemm.h"
#include "cpu/winograd_conv2d.h"

namespace cnnfast {

template <class T>
void conv2d_forward(Cpu, const Conv2dShape& s, View<const T> input, View<const T> weight, const T* bias,
                    const Epilogue<T>& epilogue, View<T> output) {
  if constexpr (sizeof(T) == sizeof(float) && sizeof(Compute<T>) == sizeof(T)) {
    if (winograd_conv2d_forward(s, input, weight, bias, epilogue, 1, output)) return;
    if (direct_conv2d_forward(s, input, weight, bias, epilogue, output)) return;
  }
  if (depthwise_conv2d_forward<T>(s, input, weight, bias, epilogue, output)) return;
  implicit_gemm_forward<T>(s, input, weight, bias, epilogue, output);
}

// What is null is not wanted; `output` is null without ReLU. False if it is for relu_backward and conv2d_backward.
template <class T>
bool conv2d_relu_backward(Cpu, const Conv2dShape& s, View<const T> grad_output, View<const T> output,
                          View<const T> input, View<const T> weight, View<T> grad_input, View<T> grad_weight,
                          T* grad_bias) {
  if constexpr (sizeof(T) == sizeof(float) && sizeof(Compute<T>) == sizeof(T)) {
    if (direct_conv2d_backward(s, grad_output, output, input, weight, grad_input, grad_weight, grad_bias)) return true;
  }
  return depthwise_conv2d_backward<T>(s, grad_output, output, input, weight, grad_input, grad_weight, grad_bias);
}

// Also the forward pass of the transposed convolution, whose bias [C] may be null.
template <class T>
void conv2d_backward_input(Cpu, const Conv2dShape& s, View<const T> grad_output, View<const T> weight, const T* bias,
                           View<T> grad_input) {
  if constexpr (sizeof(T) == sizeof(float) && sizeof(Compute<T>) == sizeof(T)) {
    if (winograd_conv2d_backward_input(s, grad_output, weight, bias, grad_input)) return;
  }
  if (depthwise_conv2d_backward_input<T>(s, grad_output, weight, bias, grad_input)) return;
  implicit_gemm_backward_input<T>(s, grad_output, weight, bias, grad_input);
}

template <class T>
void conv2d_backward_weight(Cpu, const Conv2dShape& s, View<const T> input, View<const T> grad_output,
                            View<T> grad_weight) {
  if constexpr (sizeof(T) == sizeof(float) && sizeof(Compute<T>) == sizeof(T)) {
    if (winograd_conv2d_backward_weight(s, input, grad_output, grad_weight)) return;
    if (direct_conv2d_backward_weight(s, input, grad_output, grad_weight)) return;
  }
  if (depthwise_conv2d_backward<T>(s, grad_output, {}, input, {}, {}, grad_weight, nullptr)) return;
  implicit_gemm_backward_weight<T>(s, input, grad_output, grad_weight);
}

template <class T>
void sum_over_pixels(Cpu, int64_t N, int64_t K, int64_t P, int64_t Q, View<const T> grad_output, T* grad_bias) {
  sum_over_pixels<T>(N, K, P, Q, grad_output, grad_bias);
}

}  // namespace cnnfast
