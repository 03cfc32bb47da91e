// Contract of the max-pooling kernels: bodies in kernels/max_pool2d.h, launchers in max_pool2d.cpp.
#pragma once

#include <cstdint>

#include "common/max_pool2d.h"
#include "common/number.h"
#include "cpu/device.h"

namespace cnnfast {

template <class T, class Stored>
struct MaxPool2dKernelsOf {
  // Rows [begin, end) of the N * P (channels_last) or N * C * P rows of the output.
  void (*forward)(const MaxPool2dForward<T, Stored>&, int64_t begin, int64_t end);
  // Tasks [begin, end) of the N * backward_blocks planes or strips of channels. False if a winner lay outside the
  // plane; nothing is written there. `scratch` holds backward_scratch elements.
  bool (*backward)(const MaxPool2dBackward<T, Stored>&, int64_t begin, int64_t end, Compute<T>* scratch);
};

template <class T>
struct MaxPool2dKernels {
  MaxPool2dKernelsOf<T, int64_t> plain;
  MaxPool2dKernelsOf<T, uint8_t> relu;
};

// Channels a backward task takes in channels_last: all of them where images are enough tasks, else a cache line's.
static constexpr int64_t max_pool2d_strip(const Pool2dShape& s) { return s.N >= 8 ? s.C : min<int64_t>(s.C, 16); }
static constexpr int64_t max_pool2d_backward_blocks(const Pool2dShape& s, bool channels_last) {
  return channels_last ? ceil_div(s.C, max_pool2d_strip(s)) : s.C;
}
// Sums in progress of one task, where T is not what sums are kept in.
template <class T>
static constexpr int64_t max_pool2d_backward_scratch(const Pool2dShape& s, bool channels_last) {
  return sizeof(T) == sizeof(Compute<T>) ? 0 : s.H * s.W * (channels_last ? max_pool2d_strip(s) : 1);
}

// On all threads. Backward throws for a winner outside the plane.
template <class T, class Stored>
void max_pool2d_forward(Cpu, const MaxPool2dForward<T, Stored>& args);
template <class T, class Stored>
void max_pool2d_backward(Cpu, const MaxPool2dBackward<T, Stored>& args);

}  // namespace cnnfast
