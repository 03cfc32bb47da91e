// Contract of the fused convolution + bias + ReLU + max-pool: bodies in kernels/direct_*.h and
// kernels/pool_sparse_backward.h, launcher in conv2d_relu_max_pool2d.cpp.
#pragma once

#include <cstdint>

#include "common/shape.h"

namespace cnnfast {

// How the direct forward vectorises.
//   channels: registers run over output channels K; pays where K fills them.
//   width:    registers run over pooled columns; pays for few channels on wide maps.
//   map:      registers run over output channels, for windows other than 2x2 with stride 2.
// And, for inference only, winograd: F(2x2, 3x3), registers over output channels.
enum class DirectBody { channels, width, map, winograd };

// What one task of the direct forward is: a band of pooled rows of one image, small enough that its input stays in
// the cache. Depends on the shape and the register width alone.
struct DirectPlan {
  DirectBody body;
  int64_t band;             // pooled rows in a task
  int64_t bands;            // tasks per image
  int64_t packed_weight;    // floats
  int64_t workspace_bytes;  // per task
};

struct DirectForward {
  Conv2dShape conv;
  Pool2dShape pool;
  DirectPlan plan;
  View<const float> input;
  View<float> output;
  View<uint8_t> code;  // data is null where no code is wanted
  View<const float> weight;
  const float* bias;  // or null
  const float* packed_weight;
};

// The pool-sparse backward of a slice of the batch, from (pooled gradient, code) alone. Partial sums of one slice:
// grad_weight as [K][R][round_up(S * C, lanes)], grad_bias as [K].
struct PoolSparseBackward {
  Conv2dShape conv;
  Pool2dShape pool;
  View<const float> grad_output;
  View<const uint8_t> code;
  View<const float> input;
  View<float> grad_input;      // data is null where not wanted
  const float* packed_weight;  // [K][R][round_up(S * C, lanes)], zero-padded; for grad_input only
  bool want_grad_weight;       // and grad_bias
};

struct ConvReluMaxPool2dKernels {
  // Whether the direct forward takes this shape, and how; Winograd only where it may, which has no codes.
  bool (*plan)(const Conv2dShape&, const Pool2dShape&, bool may_winograd, DirectPlan*);
  // packed_weight from a weight of [K, C, R, S] and a bias (or null).
  void (*pack_weight)(const Conv2dShape&, const DirectPlan&, View<const float> weight, const float* bias,
                      float* packed);
  // Pooled rows [band_index * band, ...) of image n.
  void (*forward)(const DirectForward&, int64_t n, int64_t band_index, char* workspace);

  // Whether the pool-sparse backward takes this shape.
  bool (*sparse)(const Conv2dShape&, const Pool2dShape&);
  // Floats in one row (fixed k and r) of the packed weight and of grad_weight's partial sums.
  int64_t (*sparse_row)(const Conv2dShape&);
  int64_t (*sparse_workspace_bytes)(const Conv2dShape&, const Pool2dShape&);
  // Images [begin, end); adds to the partial sums. False, and incomplete, if a code's winner lies outside the map.
  bool (*backward)(const PoolSparseBackward&, int64_t begin, int64_t end, float* grad_weight, float* grad_bias,
                   char* workspace);
};

}  // namespace cnnfast
