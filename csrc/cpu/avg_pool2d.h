// Contract of the average-pooling kernels: bodies in kernels/avg_pool2d.h, launchers in avg_pool2d.cpp.
#pragma once

#include <cstdint>

#include "common/number.h"
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

template <class T>
struct AvgPool2dKernels {
  // Rows [begin, end) of the N * P (channels_last) or N * C * P rows of the output.
  void (*forward)(const AvgPool2dForward<T>&, int64_t begin, int64_t end);
  // Rows [begin, end) of the N * H (channels_last) or N * C * H rows of grad_input. `scratch` holds
  // avg_pool2d_backward_scratch elements.
  void (*backward)(const AvgPool2dBackward<T>&, int64_t begin, int64_t end, Compute<T>* scratch);
};

static constexpr int64_t avg_pool2d_backward_scratch(const Pool2dShape& s) { return s.P + 2 * s.Q + s.W; }

}  // namespace cnnfast
