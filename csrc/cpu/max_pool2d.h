// Contract of the max-pooling kernels: bodies in kernels/max_pool2d.h, launchers in max_pool2d.cpp.
//
// The first of equal values wins a window; a NaN wins over any number and the last NaN over earlier ones, as in
// torch. What is remembered of the winner, `Stored`, is
//   int64_t: its place in the H*W plane, -1 for a window without any tap inside the input;
//   uint8_t: its row-major index in the window, kClipped where ReLU clips the maximum. The pooled value is then
//            max(x, 0), which is the maximum of the window's ReLU.
#pragma once

#include <cstdint>

#include "common/number.h"
#include "common/shape.h"

namespace cnnfast {

template <class T, class Stored>
struct MaxPool2dForward {
  Pool2dShape shape;
  bool channels_last;  // the order of rows, below
  View<const T> input;
  View<T> output;       // dense, in the order that channels_last says
  View<Stored> winner;  // likewise; data is null where it is not wanted
};

// grad_input is dense in the order that channels_last says. For int64_t winners only N C H W P Q of the shape count.
template <class T, class Stored>
struct MaxPool2dBackward {
  Pool2dShape shape;
  bool channels_last;
  View<const T> grad_output;
  View<const Stored> winner;
  View<T> grad_input;
};

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

}  // namespace cnnfast
