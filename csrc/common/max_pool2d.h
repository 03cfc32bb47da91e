// Arguments of the max-pooling kernels of every device.
//
// The first of equal values wins a window; a NaN wins over any number and the last NaN over earlier ones, as in
// torch. What is remembered of the winner, `Stored`, is
//   int64_t: its place in the H*W plane, -1 for a window without any tap inside the input;
//   uint8_t: its row-major index in the window, its code; kClipped for a window without any tap inside the input.
// With `relu` the pooled value is max(x, 0), which is the maximum of the window's ReLU, and the code is kClipped where
// that clips it, too.
#pragma once

#include "common/shape.h"

namespace cnnfast {

template <class T, class Stored>
struct MaxPool2dForward {
  Pool2dShape shape;
  bool relu;           // with codes only
  bool channels_last;  // the order of rows, below
  View<const T> input;
  View<T> output;       // dense, in the order that channels_last says
  View<Stored> winner;  // likewise; data is null where it is not wanted
};

// grad_input is dense in the order that channels_last says. For int64_t winners the CPU's kernels need only
// N C H W P Q of the shape.
template <class T, class Stored>
struct MaxPool2dBackward {
  Pool2dShape shape;
  bool channels_last;
  View<const T> grad_output;
  View<const Stored> winner;
  View<T> grad_input;
};

}  // namespace cnnfast
