// Contract of the average-pooling kernels: bodies in kernels/avg_pool2d.h, launchers in avg_pool2d.cpp.
#pragma once

#include <cstdint>

#include "common/avg_pool2d.h"
#include "common/number.h"
#include "cpu/device.h"

namespace cnnfast {

template <class T>
struct AvgPool2dKernels {
  // Rows [begin, end) of the N * P (channels_last) or N * C * P rows of the output.
  void (*forward)(const AvgPool2dForward<T>&, int64_t begin, int64_t end);
  // Rows [begin, end) of the N * H (channels_last) or N * C * H rows of grad_input. `scratch` holds
  // avg_pool2d_backward_scratch elements.
  void (*backward)(const AvgPool2dBackward<T>&, int64_t begin, int64_t end, Compute<T>* scratch);
};

static constexpr int64_t avg_pool2d_backward_scratch(const Pool2dShape& s) { return s.P + 2 * s.Q + s.W; }

// On all threads.
template <class T>
void avg_pool2d_forward(Cpu, const AvgPool2dForward<T>& args);
template <class T>
void avg_pool2d_backward(Cpu, const AvgPool2dBackward<T>& args);

}  // namespace cnnfast
