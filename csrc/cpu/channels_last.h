// Copies of planes with their channels side by side, for kernels that are the faster on such: bodies in
// kernels/channels_last.h, launcher in channels_last.cpp.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/shape.h"

namespace cnnfast {

struct ChannelsLastKernels {
  // to[pixel][channel] = from[channel][pixel], and back, through the epilogue of what begins at `to`: planes `plane`
  // elements apart, the other dense.
  void (*from_planes)(const float* from, int64_t plane, int64_t channels, int64_t pixels, float* to);
  void (*to_planes)(const float* from, int64_t channels, int64_t pixels, float* to, int64_t plane,
                    const Epilogue<float>& epilogue);
};

// The size of a tensor of planes, [N, C, H, W].
struct PlanesSize {
  int64_t N, C, H, W;

  int64_t elements() const { return N * C * H * W; }
  Strides channels_last() const { return {H * W * C, 1, W * C, C}; }
};

void copy_from_planes(const PlanesSize& size, View<const float> planes, float* channels_last);
void copy_to_planes(const PlanesSize& size, const float* channels_last, View<float> planes,
                    const Epilogue<float>& epilogue);

}  // namespace cnnfast
