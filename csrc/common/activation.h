// What an output goes through once it is summed.
#pragma once

#include <cstdint>

namespace cnnfast {

// The numbers are those of the raw ops.
enum class Activation : int8_t { none = 0, relu = 1, relu6 = 2 };

// Each clips to a range; NaN stays NaN.
template <class A>
static constexpr A lowest_of(Activation activation) {
  return activation == Activation::none ? -static_cast<A>(__builtin_inf()) : A(0);
}
template <class A>
static constexpr A highest_of(Activation activation) {
  return activation == Activation::relu6 ? A(6) : static_cast<A>(__builtin_inf());
}

}  // namespace cnnfast
