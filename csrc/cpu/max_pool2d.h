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
  // Tasks [begin, end) of the N * scatter_blocks planes or strips of channels. False if a winner lay outside the plane;
  // nothing is written there. `scratch` holds scatter_scratch elements.
  bool (*scatter)(const MaxPool2dBackward<T, Stored>&, int64_t begin, int64_t end, Compute<T>* scratch);
};

template <class T>
struct MaxPool2dKernels {
  MaxPool2dKernelsOf<T, int64_t> index;
  MaxPool2dKernelsOf<T, uint8_t> code;
  // Backward where max_pool2d_gathers: rows [begin, end) of the N * H (channels_last) or N * C * H rows of grad_input.
  // A winner outside the plane is not found, and its gradient dropped.
  void (*gather)(const MaxPool2dBackward<T, uint8_t>&, int64_t begin, int64_t end);
};

// How many windows an element may lie in for `gather`, which asks them all.
static constexpr int64_t kMaxGatherWindows = 32;

template <class T>
static constexpr bool max_pool2d_gathers(const MaxPool2dBackward<T, uint8_t>& a) {
  const Pool2dShape& s = a.shape;
  if (s.dilation_h != 1 || s.dilation_w != 1) return false;
  if (ceil_div(s.R, s.stride_h) * ceil_div(s.S, s.stride_w) > kMaxGatherWindows) return false;
  return a.channels_last ? a.winner.stride.c == 1 && a.grad_output.stride.c == 1
                         : a.winner.stride.w == 1 && a.grad_output.stride.w == 1 && s.stride_w <= 2;
}

// Channels a task of `scatter` takes in channels_last: all of them where images are enough tasks, else a cache line's.
static constexpr int64_t max_pool2d_scatter_strip(const Pool2dShape& s) {
  return s.N >= 8 ? s.C : min<int64_t>(s.C, 16);
}
static constexpr int64_t max_pool2d_scatter_blocks(const Pool2dShape& s, bool channels_last) {
  return channels_last ? ceil_div(s.C, max_pool2d_scatter_strip(s)) : s.C;
}
// Sums in progress of one task, where T is not what sums are kept in.
template <class T>
static constexpr int64_t max_pool2d_scatter_scratch(const Pool2dShape& s, bool channels_last) {
  return sizeof(T) == sizeof(Compute<T>) ? 0 : s.H * s.W * (channels_last ? max_pool2d_scatter_strip(s) : 1);
}

// On all threads. Backward throws for a place outside the plane.
template <class T, class Stored>
void max_pool2d_forward(Cpu, const MaxPool2dForward<T, Stored>& args);
template <class T, class Stored>
void max_pool2d_backward(Cpu, const MaxPool2dBackward<T, Stored>& args);

}  // namespace cnnfast
