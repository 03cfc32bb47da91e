// Contract of algorithm `winograd`: 3x3 convolution with stride and dilation 1, float32, as F(4x4, 3x3). Forward and
// input gradient in kernels/winograd_conv2d.h, weight gradient in kernels/winograd_backward_weight.h, launchers in
// winograd_conv2d.cpp.
//
// Tiles are numbered (image, tile row, tile column); a strip is some neighbours of one row, a chunk a range of strips
// whose transformed tiles are in memory at one time. A chunk goes through stages, each a number of independent tasks.
#pragma once

#include <cstdint>

#include "common/gather_conv.h"
#include "common/shape.h"

namespace cnnfast {

constexpr int kWinogradOutputs = 4, kWinogradTaps = 3, kWinogradSize = kWinogradOutputs + kWinogradTaps - 1;
constexpr int kWinogradElements = kWinogradSize * kWinogradSize;

// One group's convolution of an [N, C, H, W] source to an [N, K, P, Q] output.
struct WinogradConv {
  int64_t N, C, K;
  int64_t H, W, P, Q;
  int64_t pad_top, pad_left;
};

// What the shape alone decides.
struct WinogradPlan {
  int64_t tile_rows, tile_columns;          // of an image
  int64_t strip, strips_per_row;            // tiles of a strip; the last of a row may have fewer
  int64_t strips;                           // in all
  int64_t chunk, chunks;                    // strips of a chunk, and their number
  int64_t chunk_tiles;                      // at most
  int64_t weight_panels;                    // of output channels
  int64_t packed_weight;                    // floats; 0: each task transforms the weights it multiplies
  int64_t source_floats, product_floats;    // of a chunk: transformed source tiles, products (or gradients) of them
  int64_t scratch_floats, multiply_floats;  // of a task of transform_source, of multiply
  int64_t source_tasks, product_tasks, multiply_tasks;  // per strip, per strip, per chunk
};

struct WinogradJob {
  WinogradConv conv;
  WinogradPlan plan;
  View<const float> source;
  GatherWeight<const float> weight;
  const float* packed_weight;
  const float* bias;  // [K], may be null
  bool relu;
  View<float> output;
};

// A weight gradient; its plan's `products` are transformed gradients, its `packed_weight` floats are the sums of all
// chunks.
struct WinogradWeightJob {
  WinogradConv conv;
  WinogradPlan plan;
  GatherWeight<float> grad_weight;
};

struct WinogradConv2dKernels {
  // Whether winograd is the algorithm for this convolution.
  bool (*plan)(const WinogradConv&, WinogradPlan*);
  // packed_weight's panel `index`, G g G^T.
  void (*pack_weight)(const WinogradConv&, GatherWeight<const float> weight, float* packed, int64_t index);
  // transformed [element][tile of the chunk][C] = B^T d B, some channels of a strip.
  void (*transform_source)(const WinogradConv&, const WinogradPlan&, View<const float> source, int64_t chunk,
                           int64_t task, float* transformed, float* scratch);
  // products [element][tile][K]
  void (*multiply)(const WinogradJob&, int64_t chunk, int64_t task, const float* transformed, float* products,
                   float* scratch);
  // output = A^T products A + bias, clipped at zero with relu, some channels of a strip. False if it is not finite.
  bool (*transform_output)(const WinogradJob&, int64_t chunk, int64_t task, const float* products);

  bool (*weight_plan)(const WinogradConv&, WinogradPlan*);
  // gradients [element][tile][K] = A dY A^T, some channels of a strip.
  void (*transform_gradient)(const WinogradConv&, const WinogradPlan&, View<const float> grad_output, int64_t chunk,
                             int64_t task, float* transformed, float* scratch);
  // Adds a chunk's products to the sums; with only one chunk, finishes them. False if a gradient is not finite.
  bool (*multiply_gradient)(const WinogradWeightJob&, int64_t chunk, int64_t task, const float* transformed,
                            const float* gradients, float* sums, float* scratch);
  // grad_weight's panel `index`, G^T sums G. False if it is not finite.
  bool (*finish_weight)(const WinogradWeightJob&, int64_t index, const float* sums);
};

// The launchers. False if winograd is not the algorithm for this shape, or a result is not finite (and then not right).
bool winograd_conv2d_forward(const Conv2dShape& shape, View<const float> input, View<const float> weight,
                             const float* bias, bool relu, View<float> output);
bool winograd_conv2d_backward_input(const Conv2dShape& shape, View<const float> grad_output, View<const float> weight,
                                    const float* bias, View<float> grad_input);
bool winograd_conv2d_backward_weight(const Conv2dShape& shape, View<const float> input, View<const float> grad_output,
                                     View<float> grad_weight);

}  // namespace cnnfast
