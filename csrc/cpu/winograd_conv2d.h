// Contract of algorithm `winograd`: 3x3 convolution with stride and dilation 1, float32, as F(4x4, 3x3). Forward and
// input gradient in kernels/winograd_conv2d.h, weight gradient in kernels/winograd_backward_weight.h, launchers in
// winograd_conv2d.cpp.
//
// Tiles are numbered (image, tile row, tile column); a strip is some neighbours of one row. A task has its part of the
// strips, or of the output channels, to itself from the transform of the source to the result, with memory of its own:
// what one core transforms, another would have to fetch from its cache line by line, which takes longer than to
// transform it again.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/gather_conv.h"
#include "common/shape.h"

namespace cnnfast {

constexpr int kWinogradOutputs = 4, kWinogradTaps = 3, kWinogradSize = kWinogradOutputs + kWinogradTaps - 1;
constexpr int kWinogradPool = 2;  // side of the pooling windows that a tile's outputs are
constexpr int kWinogradElements = kWinogradSize * kWinogradSize;

// What winograd has to be faster than to be chosen: direct sums, which pack their weights first or find them packed; or
// nothing, where whoever asks has measured it.
enum class WinogradRival : int8_t { sums, packed_sums, none };

// One group's convolution of an [N, C, H, W] source to an [N, K, P, Q] output.
struct WinogradConv {
  int64_t N, C, K;
  int64_t H, W, P, Q;
  int64_t pad_top, pad_left;
  bool dense_taps;  // a kernel's nine weights are neighbours in memory
  WinogradRival rival;
};

struct WinogradPlan {
  int64_t tile_rows, tile_columns;     // of an image
  int64_t strip, strips_per_row;       // tiles of a strip; the last of a row may have fewer
  int64_t strips;                      // in all
  int64_t chunk, chunk_tiles;          // strips, and at most so many tiles, that are transformed at a time
  int64_t panels, parts, part_panels;  // of output channels; the parts they are cut into, and panels of one at most
  int64_t slices;                      // of the strips: forward, a chunk each; weight gradient, partial sums
  int64_t tasks;                       // slices * parts
  int64_t shared_floats;               // weights or sums of all tasks; 0: each task has those of its part
  int64_t task_floats;                 // memory of a task
};

struct WinogradJob {
  WinogradConv conv;
  WinogradPlan plan;
  View<const float> source;
  GatherWeight<const float> weight;
  const float* packed_weight;
  const float* bias;  // [K], may be null
  Epilogue<float> epilogue;
  int pool;  // 1, or kWinogradPool: the output is max-pooled, in windows of that side and stride
  View<float> output;
};

struct WinogradWeightJob {
  WinogradConv conv;
  WinogradPlan plan;
  View<const float> source, grad_output;
  GatherWeight<float> grad_weight;
};

struct WinogradConv2dKernels {
  // Whether winograd is the algorithm for this convolution. The number of threads decides only who computes what.
  bool (*plan)(const WinogradConv&, int64_t threads, WinogradPlan*);
  // packed_weight's panel `index`, G g G^T, where it is shared.
  void (*pack_weight)(const WinogradConv&, GatherWeight<const float> weight, float* packed, int64_t index);
  // Computes a task's part of the output. False if it is not finite.
  bool (*forward)(const WinogradJob&, int64_t task, float* memory);

  bool (*weight_plan)(const WinogradConv&, int64_t threads, WinogradPlan*);
  // Sums a task's part of the gradient; finishes it, too, unless `sums` are shared. False if it is not finite.
  bool (*backward_weight)(const WinogradWeightJob&, int64_t task, float* sums, float* memory);
  // Adds up the slices' sums of panel `index`, and writes G^T sums G. False if it is not finite.
  bool (*finish_weight)(const WinogradWeightJob&, int64_t index, float* sums);
};

// Whether winograd may be chosen, this one and that of fused inference: unless CNNFAST_WINOGRAD was 0 at the first
// convolution, or the caller says otherwise. The setter returns what was set before.
bool winograd_enabled();
bool set_winograd(bool enabled);

// Whether winograd is the algorithm for the forward pass, the input gradient, the weight gradient.
bool winograd_takes(const Conv2dShape& shape, const Strides& weight, WinogradRival rival);
bool winograd_takes_backward_input(const Conv2dShape& shape, const Strides& weight);
bool winograd_takes_backward_weight(const Conv2dShape& shape, const Strides& grad_weight);

// The launchers. False if winograd is not the algorithm for this shape, or a result is not finite (and then not right).
// `output` is [N, K, P / pool, Q / pool].
bool winograd_conv2d_forward(const Conv2dShape& shape, View<const float> input, View<const float> weight,
                             const float* bias, const Epilogue<float>& epilogue, int pool, View<float> output,
                             WinogradRival rival = WinogradRival::sums);
bool winograd_conv2d_backward_input(const Conv2dShape& shape, View<const float> grad_output, View<const float> weight,
                                    const float* bias, View<float> grad_input);
bool winograd_conv2d_backward_weight(const Conv2dShape& shape, View<const float> input, View<const float> grad_output,
                                     View<float> grad_weight);

}  // namespace cnnfast
