// The gradients of a direct convolution (+ ReLU), from one padded copy of grad_output per band of rows.
//
//   grad_input[c][h][w]     = sum over k, r, s of weight[k][c][R - 1 - r][S - 1 - s] * padded[k][h + r][w + s]
//   grad_weight[k][c][r][s] = sum over p, q of grad_output[k][p][q] * input[c][p + r][q + s]           (input padded)
//   grad_bias[k]            = sum over p, q of grad_output[k][p][q]
//
// where grad_output is zero wherever the ReLU clipped, and padded is grad_output within zeros. The first is the direct
// forward with the channels' roles exchanged. Of the second, a tile is up to 4 output channels times up to 3
// neighbouring taps, each sum a register of columns: 7 loads for 12 multiply-adds.
#pragma once

#include "cpu/kernels/direct_conv2d.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kWeightTileChannels = 4, kWeightTileTaps = 3;
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
    const int64_t columns = round_up(conv.Q, kLanes<float>);
    gradient = direct_input(transposed(conv), band);
    gradient.pitch = max(gradient.pitch, conv.S - 1 - conv.pad_left + columns);
    // The last band also meets the gradients below the input's last row.
    input = {gradient.rows + conv.R - 1, columns + conv.S - 1};
    gradient_floats = round_up(conv.K * gradient.plane(), 16);
    floats = gradient_floats + conv.C * input.plane();
  }
};

// Adds to sums[k * sum_stride + t]. What lies right of the last column of `dy` is zero, of `x` anything: not a number
// times zero is not zero.
template <int kChannels, int kTaps>
__attribute__((noinline)) void weight_grad_tile(const float* x, int64_t x_pitch, const float* dy,
                                                const PaddedPlanes& gradient, int64_t rows, int64_t columns,
                                                float* sums, int64_t sum_stride) {
  constexpr int64_t kWidth = kLanes<float>;
  Vec<float> sum[kChannels][kTaps] = {};
  const int64_t plane = gradient.plane();
  for (int64_t row = 0; row < rows; ++row, x += x_pitch, dy += gradient.pitch) {
    const auto add = [&](int64_t q, auto whole) CNNFAST_INLINE_LAMBDA {
      Vec<float> xv[kTaps];
      unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA {
        xv[t.value] = load_vec(x + q + t.value);
        if constexpr (!whole.value) xv[t.value] = first_lanes(xv[t.value], columns - q);
        pin(xv[t.value]);
      });
      const float* g = dy + q;
      unroll<kChannels>([&](auto k) CNNFAST_INLINE_LAMBDA {
        Vec<float> gv = load_vec(g);
        // Most of its loads cross a line of 64 bytes: each counts twice, and folded into the multiply-adds (which AVX2
        // does not mind) they are the bound.
        if constexpr (kWidth == 16) pin(gv);
        unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { sum[k.value][t.value] += xv[t.value] * gv; });
        g += plane;
        forget_loads();
      });
    };
    int64_t q = 0;
    for (; q + kWidth <= columns; q += kWidth) add(q, Constant<1>{});
    if (q < columns) add(q, Constant<0>{});
  }
  unroll<kChannels>([&](auto k) CNNFAST_INLINE_LAMBDA {
    unroll<kTaps>(
        [&](auto t) CNNFAST_INLINE_LAMBDA { sums[k.value * sum_stride + t.value] += lane_sum(sum[k.value][t.value]); });
  });
}

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

static void add_weight_grad(const Conv2dShape& conv, const BackwardBand& band, const float* x, const float* dy,
                            int64_t rows, float* sums) {
  const int64_t taps = conv.R * conv.S;
  for (int64_t k = 0; k < conv.K; k += kWeightTileChannels) {
    const int64_t channels = min<int64_t>(kWeightTileChannels, conv.K - k);
    for (int64_t c = 0; c < conv.C; ++c) {
      for (int64_t r = 0; r < conv.R; ++r) {
        for (int64_t s = 0; s < conv.S; s += kWeightTileTaps) {
          with_constant<1, kWeightTileChannels>(channels, [&](auto channel_count) {
            with_constant<1, kWeightTileTaps>(min<int64_t>(kWeightTileTaps, conv.S - s), [&](auto tap_count) {
              weight_grad_tile<channel_count.value, tap_count.value>(
                  x + c * band.input.plane() + r * band.input.pitch + s, band.input.pitch,
                  dy + k * band.gradient.plane(), band.gradient, rows, conv.Q,
                  sums + (k * conv.C + c) * taps + r * conv.S + s, conv.C * taps);
            });
          });
        }
      }
    }
  }
}

static void add_bias_grad(const Conv2dShape& conv, const PaddedPlanes& gradient, const float* dy, int64_t rows,
                          float* sums) {
  for (int64_t k = 0; k < conv.K; ++k) {
    Vec<float> sum[2] = {};  // two chains of additions
    for (int64_t row = 0; row < rows; ++row) {
      const float* g = dy + k * gradient.plane() + row * gradient.pitch;
      for (int64_t q = 0; q < conv.Q; q += kLanes<float>) sum[row & 1] += load_vec(g + q);
    }
    sums[k] += lane_sum(sum[0] + sum[1]);
  }
}

static void direct_conv2d_backward(const DirectConv2dBackward& job, int64_t task, float* sums, char* workspace) {
  const Conv2dShape &conv = job.conv, gather = transposed(conv);
  const int64_t units = conv.N * job.plan.bands, slices = job.plan.slices;
  const BackwardBand band(conv, job.plan.band);
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
    if (job.want_weight) {
      copy_padded(conv, job.input, n, top, band.input, x);
      add_weight_grad(conv, band, x, own, rows, sums);
    }
    if (job.want_bias) add_bias_grad(conv, band.gradient, own, rows, sums + conv.K * conv.C * conv.R * conv.S);
  }
}

static bool direct_conv2d_backward_plan(const Conv2dShape& conv, DirectConv2dBackwardPlan* plan) {
  DirectConv2dPlan forward;
  if (!direct_conv2d_plan(conv, &forward)) return false;
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
