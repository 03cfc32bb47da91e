// Contract of algorithm `depthwise`: each channel is convolved with a kernel of its own (G == C == K), 3, 5 or 7 high
// and wide, with strides 1 or 2 and no dilation. Bodies in kernels/depthwise_conv2d.h and
// kernels/depthwise_conv2d_backward.h, launchers in depthwise_conv2d.cpp.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/number.h"
#include "common/shape.h"

namespace cnnfast {

// How a convolution's images lie. The slab's bands depend on the source alone; in place needs all in channels_last,
// columns all dense along their rows, and both no ReLU to go back through. (16 bits have a slab nevertheless: they are
// converted once.)
enum class DepthwiseLayout { planes, columns, channels_last_source, in_place };

// A unit is a band of rows of one block of channels of one image, in place of all blocks of the task; a task is a slice
// of the (image, band) pairs for a group of the blocks.
struct DepthwisePlan {
  bool in_place;            // or in slabs
  bool by_columns;          // of planes, a channel a block: depthwise_planes.h
  int64_t blocks;           // of as many channels as a register has lanes, by columns of one
  int64_t rows;             // of a plane
  int64_t band, bands;      // rows of a unit, and units per plane
  int64_t slices, groups;   // the product is the number of tasks
  int64_t packed_weight;    // elements
  int64_t sums;             // elements of one slice's partial sums, of the gradients of weight and bias
  int64_t workspace_bytes;  // per task
};

// The forward pass, or the input gradient: then source is grad_output.
template <class T>
struct DepthwiseGather {
  Conv2dShape conv;
  DepthwisePlan plan;
  bool input_gradient;
  View<const T> source;
  const Compute<T>* packed_weight;
  Epilogue<T> epilogue;
  View<T> output;
};

template <class T>
struct DepthwiseBackward {
  Conv2dShape conv;
  DepthwisePlan plan;
  View<const T> grad_output;
  View<const T> output;  // of conv2d_relu: where it is not positive, grad_output counts as zero. Null: no ReLU
  View<const T> input;
  const Compute<T>* packed_weight;
  View<T> grad_input;  // null: not wanted
  bool want_weight, want_bias;
};

template <class T>
struct DepthwiseKernels {
  using Sum = Compute<T>;

  // Whether depthwise is the algorithm for this shape, and its tasks.
  bool (*plan)(const Conv2dShape&, bool input_gradient, DepthwiseLayout, DepthwisePlan*);
  // bias may be null.
  void (*pack_weight)(const Conv2dShape&, const DepthwisePlan&, bool input_gradient, View<const T> weight,
                      const T* bias, Sum* packed);
  void (*gather)(const DepthwiseGather<T>&, int64_t task, char* workspace);

  bool (*backward_plan)(const Conv2dShape&, DepthwiseLayout, DepthwisePlan*);
  // Writes the task's part of grad_input and of the sums, slice after slice.
  void (*backward)(const DepthwiseBackward<T>&, int64_t task, Sum* sums, char* workspace);
  // Adds up the slices, in order, and writes them to the gradients, each of which may be null.
  void (*finish)(const Conv2dShape&, const DepthwisePlan&, const Sum* sums, View<T> grad_weight, T* grad_bias);
};

// The launchers. False, with nothing done, if the algorithm does not take this shape.
template <class T>
bool depthwise_conv2d_forward(const Conv2dShape& shape, View<const T> input, View<const T> weight, const T* bias,
                              const Epilogue<T>& epilogue, View<T> output);

// Also the forward pass of the transposed convolution, whose bias [C] may be null.
template <class T>
bool depthwise_conv2d_backward_input(const Conv2dShape& shape, View<const T> grad_output, View<const T> weight,
                                     const T* bias, View<T> grad_input);

// grad_input, grad_weight and grad_bias are null where not wanted; `output` is null without ReLU.
template <class T>
bool depthwise_conv2d_backward(const Conv2dShape& shape, View<const T> grad_output, View<const T> output,
                               View<const T> input, View<const T> weight, View<T> grad_input, View<T> grad_weight,
                               T* grad_bias);

}  // namespace cnnfast
