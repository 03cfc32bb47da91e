// The gradients of a direct convolution (+ ReLU), from one padded copy of grad_output per band of rows.
//
//   grad_input[c][h][w] = sum over k, r, s of weight[k][c][R - 1 - r][S - 1 - s] * padded[k][h + r][w + s]
//
// where padded is grad_output, zero wherever the ReLU clipped, within zeros: the direct forward with the channels'
// roles exchanged. The gradients of weight and bias are of direct_conv2d_weight.h.
#pragma once

#include "cpu/kernels/direct_conv2d_weight.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int64_t kMostGradients = 64;             // channels of grad_output, of which a band is summed over
constexpr int64_t kBackwardBandBytes = 192 << 10;  // padded input and grad_output of a task: within the second level

// The convolution whose forward is the input gradient.
static Conv2dShape transposed(const Conv2dShape& conv) {
  Conv2dShape t = conv;
  t.C = conv.K, t.H = conv.P, t.W = conv.Q;
  t.K = conv.C, t.P = conv.H, t.Q = conv.W;
  t.pad_top = conv.R - 1 - conv.pad_top, t.pad_bottom = conv.R - 1 - conv.pad_bottom;
  t.pad_left = conv.S - 1 - conv.pad_left, t.pad_right = conv.S - 1 - conv.pad_right;
  return t;
}

// Of a band of input rows: the padded gradients that meet them, and the padded input that meets those.
struct BackwardBand {
  PaddedPlanes gradient, input;
  int64_t gradient_floats, floats;

  BackwardBand(const Conv2dShape& conv, int64_t band) {
    gradient = direct_input(transposed(conv), band);
    // The last band also meets the gradients below the input's last row.
    input = {gradient.rows + conv.R - 1, conv.Q + conv.S - 1};
    gradient_floats = round_up(conv.K * gradient.plane(), 16);
    floats = gradient_floats + conv.C * input.plane();
  }
};

// Rows [top, top + gradient.rows) of grad_output within its zeros, clipped where `output` is.
static void copy_gradient(const DirectConv2dBackward& job, const Conv2dShape& gather, int64_t n, int64_t top,
                          const PaddedPlanes& gradient, float* out) {
  if (job.output.data == nullptr) return copy_padded(gather, job.grad_output, n, top, gradient, out);
  const int64_t step = job.grad_output.stride.w, output_step = job.output.stride.w;
  fill_padded(gather, top, gradient, out, [&](int64_t k, int64_t p, float* __restrict to, int64_t count) {
    const float *g = job.grad_output.at(n, k, p, 0), *y = job.output.at(n, k, p, 0);
    if (step == 1 && output_step == 1) {
      for (int64_t q = 0; q < count; ++q) to[q] = y[q] <= 0 ? 0.0f : g[q];
    } else {
      for (int64_t q = 0; q < count; ++q) to[q] = y[q * output_step] <= 0 ? 0.0f : g[q * step];
    }
  });
}

static void direct_conv2d_backward(const DirectConv2dBackward& job, int64_t task, float* sums, char* workspace) {
  const Conv2dShape &conv = job.conv, gather = transposed(conv);
  const int64_t units = conv.N * job.plan.bands, slices = job.plan.slices;
  const BackwardBand band(conv, job.plan.band);
  const Parts<kWeightTileChannels> blocks(conv.K);
  float* dy = reinterpret_cast<float*>(workspace);
  float* x = dy + band.gradient_floats;
  for (int64_t unit = task * units / slices; unit < (task + 1) * units / slices; ++unit) {
    const int64_t n = unit / job.plan.bands, index = unit % job.plan.bands, top = index * job.plan.band;
    copy_gradient(job, gather, n, top, band.gradient, dy);
    if (job.grad_input.data != nullptr) {
      const DirectConv2d input_gradient{gather, {}, {}, job.grad_input, job.packed_weight, Activation::none};
      direct_conv2d_rows(input_gradient, dy, band.gradient, n, top, min(job.plan.band, conv.H - top));
    }
    if (!job.want_weight && !job.want_bias) continue;
    // Gradient rows of the band's own: as many as input rows, and the last takes the rest.
    const int64_t end = index + 1 < job.plan.bands ? min(top + job.plan.band, conv.P) : conv.P, rows = end - top;
    if (rows <= 0) continue;
    const float* own = dy + gather.pad_top * band.gradient.pitch + gather.pad_left;
    if (job.want_weight) copy_padded(conv, job.input, n, top, band.input, x);
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t k = blocks.begin(block);
      const WeightBand of_weight{
          x, band.input, own + k * band.gradient.plane(), band.gradient.plane(), band.gradient.pitch, rows};
      add_weight_and_bias_grad(job, of_weight, k, blocks.size(block), sums);
    }
  }
}

static bool direct_conv2d_backward_plan(const Conv2dShape& conv, DirectConv2dBackwardPlan* plan) {
  DirectConv2dPlan forward;
  if (!direct_conv2d_plan(conv, &forward) || conv.stride_h != 1 || conv.stride_w != 1 || conv.K > kMostGradients)
    return false;
  const Conv2dShape gather = transposed(conv);
  if (min(gather.pad_top, gather.pad_bottom) < 0 || min(gather.pad_left, gather.pad_right) < 0 || conv.C == 0)
    return false;
  const int64_t weights = conv.K * conv.C * conv.R * conv.S;
  const int64_t band = band_of(conv.H, conv.N, 2 * weights * conv.W,
                               [&](int64_t rows) { return BackwardBand(conv, rows).floats * 4 <= kBackwardBandBytes; });
  // Rows so wide that not even one fits are for implicit GEMM, which cuts them.
  if (BackwardBand(conv, band).floats * 4 > 2 * kBackwardBandBytes) return false;
  plan->band = band;
  plan->bands = ceil_div(conv.H, band);
  plan->packed_weight = conv.C + weights;
  plan->slices = reduction_slices(conv.N * plan->bands, weights * 4);
  plan->workspace_bytes = BackwardBand(conv, band).floats * 4;
  return true;
}

static void pack_direct_conv2d_backward(const Conv2dShape& conv, View<const float> weight, float* packed) {
  const Strides& w = weight.stride;
  pack_direct_conv2d(transposed(conv), {weight.at(0, 0, conv.R - 1, conv.S - 1), {w.c, w.n, -w.h, -w.w}}, nullptr,
                     packed);
}

constexpr DirectConv2dKernels direct_conv2d_kernels() {
  return {direct_conv2d_plan,          pack_direct_conv2d,          direct_conv2d,
          direct_conv2d_backward_plan, pack_direct_conv2d_backward, direct_conv2d_backward};
}

}  // namespace cnnfast::CNNFAST_ISA
