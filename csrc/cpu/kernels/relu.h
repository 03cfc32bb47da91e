// ReLU, forward and backward: element-wise over dense memory. Bound by memory; the compiler vectorises the loops.
#pragma once

#include "cpu/kernels/vec.h"
#include "cpu/relu.h"

namespace cnnfast::CNNFAST_ISA {

template <class T>
void relu_forward(const T* input, T* output, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Compute<T> x = load(input + i);
    store(output + i, x < 0 ? Compute<T>(0) : x);
  }
}

template <class T>
void relu_backward(const T* grad_output, const T* output, T* grad_input, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Compute<T> g = load(grad_output + i);
    store(grad_input + i, load(output + i) <= 0 ? Compute<T>(0) : g);
  }
}

template <class T>
constexpr ReluKernels<T> relu_kernels() {
  return {relu_forward<T>, relu_backward<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
