// The forward pass and the input gradient of a convolution as one computation, the GatherConv: every output pixel
// gathers source pixels at fixed distances. A strided convolution's input gradient is several of them, one for each
// residue class of (h mod stride_h, w mod stride_w), so nothing is multiplied by inserted zeros.
#pragma once

#include "common/shape.h"

namespace cnnfast {

// How one axis is read: output i and tap t meet at source coordinate i * step + origin + t * spread, or at zero where
// that lies outside [0, size). Tap t is kernel row (or column) first_tap + t * tap_stride.
struct GatherAxis {
  int64_t size, outputs;
  int64_t step, origin, spread, taps;
  int64_t first_tap, tap_stride;
};

// output[n, m, i, j] = sum over c and taps of weight[m, c, tap] * source[n, c, h(i, tap), w(j, tap)], in each group.
struct GatherConv {
  int64_t N, G;
  int64_t M, C;  // output and source channels of one group
  GatherAxis h, w;

  CNNFAST_INLINE int64_t taps() const { return h.taps * w.taps; }
  CNNFAST_INLINE int64_t pixels() const { return N * h.outputs * w.outputs; }
};

// The weight [K, C/G, R, S] by the roles its dimensions play in a GatherConv; strides in elements.
template <class T>
struct GatherWeight {
  T* data;
  int64_t group, m, c, r, s;
};

static inline GatherAxis forward_axis(int64_t size, int64_t outputs, int64_t stride, int64_t padding, int64_t dilation,
                                      int64_t kernel) {
  return {size, outputs, stride, -padding, dilation, kernel, 0, 1};
}

static inline GatherConv forward_gather(const Conv2dShape& s) {
  return {s.N,
          s.G,
          s.K / s.G,
          s.C / s.G,
          forward_axis(s.H, s.P, s.stride_h, s.pad_top, s.dilation_h, s.R),
          forward_axis(s.W, s.Q, s.stride_w, s.pad_left, s.dilation_w, s.S)};
}

// The input coordinates residue, residue + stride, ... below input_size, as gathered from output_size gradients: tap r
// contributes where residue + padding - r * dilation is a multiple of the stride. Its taps run backwards through the
// kernel, so that spread is positive.
static inline GatherAxis backward_axis(int64_t input_size, int64_t output_size, int64_t stride, int64_t padding,
                                       int64_t dilation, int64_t kernel, int64_t residue) {
  const int64_t outputs = input_size > residue ? ceil_div(input_size - residue, stride) : 0;
  const auto meets = [&](int64_t r) { return (residue + padding - r * dilation) % stride == 0; };
  int64_t first = 0;
  while (first < kernel && first < stride && !meets(first)) ++first;
  if (first == kernel || !meets(first)) return {output_size, outputs, 1, 0, 1, 0, 0, 1};
  const int64_t period = stride / gcd(stride, dilation);
  const int64_t taps = (kernel - 1 - first) / period + 1, last = first + (taps - 1) * period;
  return {output_size, outputs, 1,      (residue + padding - last * dilation) / stride, period * dilation / stride,
          taps,        last,    -period};
}

static inline GatherConv backward_gather(const Conv2dShape& s, int64_t residue_h, int64_t residue_w) {
  return {s.N,
          s.G,
          s.C / s.G,
          s.K / s.G,
          backward_axis(s.H, s.P, s.stride_h, s.pad_top, s.dilation_h, s.R, residue_h),
          backward_axis(s.W, s.Q, s.stride_w, s.pad_left, s.dilation_w, s.S, residue_w)};
}

}  // namespace cnnfast
