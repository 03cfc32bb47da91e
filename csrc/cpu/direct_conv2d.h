// Contract of algorithm `direct` for convolution without a pool, float32: vectorised over output columns, for few
// channels and NCHW (kernels/direct_conv2d.h, kernels/direct_conv2d_weight.h; with stride 1 also the input gradient,
// kernels/direct_conv2d_backward.h), or over output channels, for a first layer of any geometry
// (kernels/direct_conv2d_channels.h, kernels/direct_conv2d_channels_weight.h). Launchers in direct_conv2d.cpp.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/shape.h"

namespace cnnfast {

// A task is a band of output rows of one image, small enough that its input stays in the cache.
struct DirectConv2dPlan {
  int64_t band;             // output rows in a task
  int64_t bands;            // tasks per image
  int64_t packed_weight;    // floats
  int64_t workspace_bytes;  // per task
};

struct DirectConv2d {
  Conv2dShape conv;
  DirectConv2dPlan plan;
  View<const float> input;
  View<float> output;  // stride.w must be 1, unless vectorised over channels
  const float* packed_weight;
  Epilogue<float> epilogue;
};

// A task is a slice of the (image, band of rows) pairs, in order.
struct DirectConv2dBackwardPlan {
  int64_t band;             // input rows; output rows, where there is no input gradient
  int64_t bands;            // per image
  int64_t slices;           // tasks, and partial sums of grad_weight and grad_bias
  int64_t packed_weight;    // floats
  int64_t workspace_bytes;  // per task
};

struct DirectConv2dBackward {
  Conv2dShape conv;
  DirectConv2dBackwardPlan plan;
  View<const float> grad_output;
  View<const float> output;  // of conv2d_relu: where it is not positive, grad_output counts as zero. Null: no ReLU
  View<const float> input;
  const float* packed_weight;
  View<float> grad_input;  // null: not wanted, and always of a first layer's kernels; stride.w must be 1
  bool want_weight, want_bias;
};

struct DirectConv2dKernels {
  // Null in kernels of gradients alone. Whether direct is the algorithm for this shape, and its tasks.
  bool (*plan)(const Conv2dShape&, DirectConv2dPlan*);
  // packed_weight from a weight of [K, C, R, S] and a bias [K] (or null).
  void (*pack_weight)(const Conv2dShape&, View<const float> weight, const float* bias, float* packed);
  // Output rows [band_index * band, ...) of image n.
  void (*forward)(const DirectConv2d&, int64_t n, int64_t band_index, char* workspace);

  bool (*backward_plan)(const Conv2dShape&, DirectConv2dBackwardPlan*);
  // Null where there is no input gradient.
  void (*pack_backward_weight)(const Conv2dShape&, View<const float> weight, float* packed);
  // Writes a slice's grad_input, and its part of grad_weight [K, C, R, S] and then grad_bias [K] to sums, which are
  // zeros before.
  void (*backward)(const DirectConv2dBackward&, int64_t slice, float* sums, char* workspace);
};

// Whether direct is the algorithm for the forward pass; for all gradients (`grad_input` null: that of the input is not
// wanted); for the weight gradient alone.
bool direct_conv2d_takes(const Conv2dShape& shape, const Strides& output);
bool direct_conv2d_takes_backward(const Conv2dShape& shape, const Strides* grad_input);
bool direct_conv2d_takes_backward_weight(const Conv2dShape& shape);

// The launcher. False, with nothing done, if the algorithm does not take this shape or layout.
bool direct_conv2d_forward(const Conv2dShape& shape, View<const float> input, View<const float> weight,
                           const float* bias, const Epilogue<float>& epilogue, View<float> output);

// grad_input, grad_weight and grad_bias are null where not wanted; `output` is null without ReLU.
bool direct_conv2d_backward(const Conv2dShape& shape, View<const float> grad_output, View<const float> output,
                            View<const float> input, View<const float> weight, View<float> grad_input,
                            View<float> grad_weight, float* grad_bias);

// The weight gradient alone, where the input gradient is not for this algorithm: of first layers.
bool direct_conv2d_backward_weight(const Conv2dShape& shape, View<const float> input, View<const float> grad_output,
                                   View<float> grad_weight);

}  // namespace cnnfast
