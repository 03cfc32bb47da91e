// Contract of algorithm `direct` for convolution without a pool: float32, few channels, stride and dilation 1. Body in
// kernels/direct_conv2d.h, launcher in direct_conv2d.cpp.
#pragma once

#include <cstdint>

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
  View<float> output;  // stride.w must be 1
  const float* packed_weight;
  bool relu;
};

struct DirectConv2dKernels {
  // Whether direct is the algorithm for this shape, and its tasks.
  bool (*plan)(const Conv2dShape&, DirectConv2dPlan*);
  // packed_weight from a weight of [K, C, R, S] and a bias [K] (or null).
  void (*pack_weight)(const Conv2dShape&, View<const float> weight, const float* bias, float* packed);
  // Output rows [band_index * band, ...) of image n.
  void (*forward)(const DirectConv2d&, int64_t n, int64_t band_index, char* workspace);
};

// The launcher. False, with nothing done, if the algorithm does not take this shape or layout.
bool direct_conv2d_forward(const Conv2dShape& shape, View<const float> input, View<const float> weight,
                           const float* bias, bool relu, View<float> output);

}  // namespace cnnfast
