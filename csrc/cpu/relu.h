// Contract of the ReLU kernels: bodies in kernels/relu.h, launcher in relu.cpp.
#pragma once

#include <cstdint>

#include "cpu/device.h"

namespace cnnfast {

template <class T>
struct ReluKernels {
  // output[i] = input[i] < 0 ? 0 : input[i] for i in [begin, end), so that NaN and -0.0 stay what they are, as in
  // torch.
  void (*forward)(const T* input, T* output, int64_t begin, int64_t end);
  // grad_input[i] = output[i] <= 0 ? 0 : grad_output[i], so that NaN lets the gradient through, as in torch.
  void (*backward)(const T* grad_output, const T* output, T* grad_input, int64_t begin, int64_t end);
};

// On all threads.
template <class T>
void relu_forward(Cpu, const T* input, T* output, int64_t count);
template <class T>
void relu_backward(Cpu, const T* grad_output, const T* output, T* grad_input, int64_t count);

}  // namespace cnnfast
