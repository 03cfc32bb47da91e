// Arguments of the average-pooling kernels of every device, and what a window's sum is divided by.
#pragma once

#include "common/shape.h"

namespace cnnfast {

// What a window's sum is divided by.
struct AvgPool2dDivisor {
  bool count_include_pad;
  int64_t divisor_override;  // 0 for none
};

template <class T>
struct AvgPool2dForward {
  Pool2dShape shape;
  AvgPool2dDivisor divisor;
  bool channels_last;  // the order of rows, below
  View<const T> input;
  View<T> output;  // dense, in the order that channels_last says
};

template <class T>
struct AvgPool2dBackward {
  Pool2dShape shape;
  AvgPool2dDivisor divisor;
  bool channels_last;
  View<const T> grad_output;
  View<T> grad_input;  // dense, in the order that channels_last says
};

// The divisor of window (p, q) is rows(p) * columns(q): the taps counted, or the override times one.
class Divisors {
 public:
  CNNFAST_INLINE Divisors(const Pool2dShape& s, AvgPool2dDivisor divisor) : s_(s), divisor_(divisor) {}

  CNNFAST_INLINE int64_t rows(int64_t p) const {
    return divisor_.divisor_override != 0 ? divisor_.divisor_override
                                          : counted(p * s_.stride_h - s_.pad_h, s_.R, s_.H, s_.pad_h);
  }
  CNNFAST_INLINE int64_t columns(int64_t q) const {
    return divisor_.divisor_override != 0 ? 1 : counted(q * s_.stride_w - s_.pad_w, s_.S, s_.W, s_.pad_w);
  }

 private:
  // With ceil_mode a window may reach beyond the padding; those taps never count.
  CNNFAST_INLINE int64_t counted(int64_t origin, int64_t kernel, int64_t size, int64_t pad) const {
    const int64_t beyond = divisor_.count_include_pad ? pad : 0;
    return min(origin + kernel, size + beyond) - max(origin, -beyond);
  }

  const Pool2dShape& s_;
  const AvgPool2dDivisor divisor_;
};

}  // namespace cnnfast
