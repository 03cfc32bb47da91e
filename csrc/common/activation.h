// What an output goes through once it is summed.
#pragma once

#include <cstdint>

#include "common/shape.h"

namespace cnnfast {

// The numbers are those of the raw ops.
enum class Activation : int8_t { none = 0, relu = 1, relu6 = 2, silu = 3, hardswish = 4 };

// Each up to ReLU6 clips to a range; NaN stays NaN. The others do not begin with that.
static constexpr bool only_clips(Activation activation) { return activation <= Activation::relu6; }
template <class A>
static constexpr A lowest_of(Activation activation) {
  const bool zero = activation == Activation::relu || activation == Activation::relu6;
  return zero ? A(0) : -static_cast<A>(__builtin_inf());
}
template <class A>
static constexpr A highest_of(Activation activation) {
  return activation == Activation::relu6 ? A(6) : static_cast<A>(__builtin_inf());
}

// activation(sum + residual), where `sum` has its bias, which algorithms keep with the weights.
template <class T>
struct Epilogue {
  Activation activation;
  const T* residual;  // laid out as the output; null: none

  CNNFAST_INLINE Epilogue(Activation activation, const T* residual = nullptr)
      : activation(activation), residual(residual) {}

  // Whether sums are clipped in registers, and done with. Else they are finished in memory: cpu/kernels/epilogue.h.
  CNNFAST_INLINE bool in_registers() const { return residual == nullptr && only_clips(activation); }
  CNNFAST_INLINE Activation clip() const { return in_registers() ? activation : Activation::none; }
  // The same for the part of the output that begins so many elements later.
  CNNFAST_INLINE Epilogue from(int64_t offset) const {
    return {activation, residual == nullptr ? nullptr : residual + offset};
  }
};

}  // namespace cnnfast
