// Numbers known at run time, from a small range, as template arguments.
#pragma once

#include <utility>

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls f(Constant<value>{}); value lies in [kFirst, kLast].
template <int kFirst, int kLast, class F>
CNNFAST_INLINE void with_constant(int64_t value, const F& f) {
  if constexpr (kFirst < kLast) {
    if (value != kFirst) return with_constant<kFirst + 1, kLast>(value, f);
  }
  f(Constant<kFirst>{});
}

// Calls f(Constant<0>{}), ..., f(Constant<kCount - 1>{}). Unlike an unrolled loop's, these indices are constants from
// the start, so that gcc keeps no array in memory that they index.
template <int kCount, class F>
CNNFAST_INLINE void unroll(const F& f) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>)
      CNNFAST_INLINE_LAMBDA { (f(Constant<kIndex>{}), ...); }(std::make_integer_sequence<int, kCount>{});
}

// The side of a kernel whose taps are unrolled; other kernels are looped over, as side 0.
constexpr int kUnrolledSize = 3;

// Calls f(count, size): a count of registers or channels in [1, kMaxCount], and kUnrolledSize or 0.
template <int kMaxCount, class F>
CNNFAST_INLINE void with_tile(int64_t count, bool unrolled, const F& f) {
  with_constant<1, kMaxCount>(count, [&](auto tile) {
    if (unrolled) {
      f(tile, Constant<kUnrolledSize>{});
    } else {
      f(tile, Constant<0>{});
    }
  });
}

}  // namespace cnnfast::CNNFAST_ISA
