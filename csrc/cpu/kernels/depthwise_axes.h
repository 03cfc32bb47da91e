// How a depthwise convolution and its input gradient read their source: as gathers (common/gather_conv.h), of which the
// input gradient is one for each parity of row and column where the stride is 2.
#pragma once

#include "common/gather_conv.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int64_t kMostDepthwiseTaps = 7 * 7, kMostDepthwiseTasks = 64;
// As kTaskProducts, of which these kernels, which wait for memory, do an eighth in the same time.
constexpr int64_t kDepthwiseTaskProducts = kTaskProducts / 8;

// One axis of the gathers: output i of part a is at i * parts + a. Outputs i of all parts read source coordinates from
// i * step + low to i * step + reach; with the input gradient, coordinate i is one of these.
struct DepthwiseAxis {
  GatherAxis part[2] = {};
  int64_t parts, outputs, step, low, reach;

  DepthwiseAxis(bool input_gradient, int64_t input, int64_t output, int64_t stride, int64_t padding, int64_t kernel)
      : parts(input_gradient ? stride : 1), step(input_gradient ? 1 : stride) {
    for (int64_t a = 0; a < parts; ++a)
      part[a] = input_gradient ? backward_axis(input, output, stride, padding, 1, kernel, a)
                               : forward_axis(input, output, stride, padding, 1, kernel);
    outputs = part[0].outputs;
    low = input_gradient ? min<int64_t>(0, part[0].origin) : part[0].origin;
    reach = input_gradient ? 0 : low;
    for (int64_t a = 0; a < parts; ++a) {
      low = min(low, part[a].origin);
      reach = max(reach, part[a].origin + part[a].taps - 1);
    }
  }
  // Source coordinates that `count` neighbouring outputs of each part meet.
  int64_t span(int64_t count) const { return (count - 1) * step + reach - low + 1; }
};

struct DepthwiseAxes {
  DepthwiseAxis h, w;
  int64_t packed_size;  // per channel: weights and biases of all parts

  DepthwiseAxes(const Conv2dShape& s, bool input_gradient)
      : h(input_gradient, s.H, s.P, s.stride_h, s.pad_top, s.R),
        w(input_gradient, s.W, s.Q, s.stride_w, s.pad_left, s.S),
        packed_size(h.parts * w.parts + s.R * s.S) {}
};

}  // namespace cnnfast::CNNFAST_ISA
