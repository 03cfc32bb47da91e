// The weight and bias gradients of a direct convolution (+ ReLU), vectorised over output columns.
//
//   grad_weight[k][c][r][s] = sum over p, q of grad_output[k][p][q] * input[c][p * stride_h + r][q * stride_w + s]
//   grad_bias[k]            = sum over p, q of grad_output[k][p][q]                                (input padded)
//
// A tile is some output channels times some neighbouring taps, each sum a register of columns: 4 times 3 are 7 loads
// for 12 multiply-adds, 6 times 4, with AVX-512, 10 for 24.
//
// Used with the input gradient (direct_conv2d_backward.h), and alone for a first layer in NCHW: grad_output is read
// where it lies but where a ReLU clips it.
#pragma once

#include "cpu/kernels/direct_conv2d.h"
#include "cpu/kernels/scratch.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kWeightTileChannels = kWideRegisters ? 6 : 4, kWeightTileTaps = kWideRegisters ? 4 : 3;
constexpr int64_t kWeightBandBytes = 192 << 10;  // input of a task, and gradients of a block: within the second level

// Some rows of grad_output, and the padded input that meets them.
struct WeightBand {
  const float* x;
  PaddedPlanes input;  // as direct_input()
  const float* dy;     // of the first channel of a block
  int64_t dy_plane, dy_pitch;
  int64_t rows;
};

// to[t] += the sum of the lanes of v[t], t < kTaps
template <int kTaps>
CNNFAST_INLINE void add_lane_sums(const Vec<float> (&from)[kTaps], float* to) {
  Vec<float> v[4]{};
  unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { v[t.value] = from[t.value]; });
  transpose_parts(v);
  const Vec<float> sums = (v[0] + v[1]) + (v[2] + v[3]);
  Lanes<float, 4> total{};
  unroll<kLanes<float> / 4>([&](auto part) CNNFAST_INLINE_LAMBDA { total += part_of<part.value>(sums); });
  unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { to[t.value] += total[t.value]; });
}

// Adds to sums[k * sum_stride + t]; x[t] is the band's input from tap t on, x_pitch between its output rows.
template <int kChannels, int kTaps>
__attribute__((noinline)) void weight_grad_tile(const WeightBand& band, const float* const* x, int64_t x_pitch,
                                                int64_t columns, float* sums, int64_t sum_stride) {
  constexpr int64_t kWidth = kLanes<float>;
  Vec<float> sum[kChannels][kTaps] = {};
  const float* from[kTaps];
  unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { from[t.value] = x[t.value]; });
  const float* dy = band.dy;
  for (int64_t row = 0; row < band.rows; ++row, dy += band.dy_pitch) {
    // What lies beyond the last column may be anything: not a number times zero is not zero.
    const auto add = [&](int64_t q, auto whole) CNNFAST_INLINE_LAMBDA {
      const auto load = [&](const float* p)
                            CNNFAST_INLINE_LAMBDA { return whole.value ? load_vec(p) : load_partial(p, columns - q); };
      Vec<float> xv[kTaps];
      unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA {
        xv[t.value] = load(from[t.value] + q);
        pin(xv[t.value]);
      });
      const float* g = dy + q;
      unroll<kChannels>([&](auto k) CNNFAST_INLINE_LAMBDA {
        Vec<float> gv = load(g);
        // Most of its loads cross a line of 64 bytes: each counts twice, and folded into the multiply-adds (which AVX2
        // does not mind) they are the bound.
        if constexpr (kWideRegisters) pin(gv);
        unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { sum[k.value][t.value] += xv[t.value] * gv; });
        g += band.dy_plane;
        forget_loads();
      });
    };
    int64_t q = 0;
    for (; q + kWidth <= columns; q += kWidth) add(q, Constant<1>{});
    if (q < columns) add(q, Constant<0>{});
    unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { from[t.value] += x_pitch; });
  }
  unroll<kChannels>([&](auto k) CNNFAST_INLINE_LAMBDA { add_lane_sums(sum[k.value], sums + k.value * sum_stride); });
}

// Nearly equal parts of at most kMost.
template <int kMost>
struct Parts {
  int64_t total, count;

  explicit Parts(int64_t total) : total(total), count(ceil_div(total, int64_t{kMost})) {}
  int64_t begin(int64_t part) const { return part * total / count; }
  int64_t size(int64_t part) const { return begin(part + 1) - begin(part); }
};

// For the `channels` of a block, at most kWeightTileChannels; sums[channel][c][r][s].
static void add_weight_grad(const Conv2dShape& conv, const WeightBand& band, int64_t channels, float* sums) {
  const int64_t taps = conv.R * conv.S, x_pitch = conv.stride_h * band.input.pitch;
  const Parts<kWeightTileTaps> parts(conv.S);
  for (int64_t c = 0; c < conv.C; ++c) {
    for (int64_t r = 0; r < conv.R; ++r, sums += conv.S) {
      const float* row = band.x + c * band.input.plane() + r * band.input.pitch;
      for (int64_t part = 0; part < parts.count; ++part) {
        const int64_t begin = parts.begin(part), size = parts.size(part);
        const float* x[kWeightTileTaps];
        for (int64_t t = 0; t < size; ++t) {
          const int64_t s = begin + t;
          x[t] = row + (conv.stride_w == 2 ? s % 2 * (band.input.pitch / 2) + s / 2 : s);
        }
        with_constant<1, kWeightTileChannels>(channels, [&](auto channel_count) {
          with_constant<1, kWeightTileTaps>(size, [&](auto tap_count) {
            weight_grad_tile<channel_count.value, tap_count.value>(band, x, x_pitch, conv.Q, sums + begin,
                                                                   conv.C * taps);
          });
        });
      }
    }
  }
}

// sums[channel]
static void add_bias_grad(const Conv2dShape& conv, const WeightBand& band, int64_t channels, float* sums) {
  for (int64_t k = 0; k < channels; ++k) {
    Vec<float> sum[2] = {};  // two chains of additions
    for (int64_t row = 0; row < band.rows; ++row) {
      const float* g = band.dy + k * band.dy_plane + row * band.dy_pitch;
      int64_t q = 0;
      for (; q + kLanes<float> <= conv.Q; q += kLanes<float>) sum[row & 1] += load_vec(g + q);
      if (q < conv.Q) sum[row & 1] += load_partial(g + q, conv.Q - q);
    }
    sums[k] += lane_sum(sum[0] + sum[1]);
  }
}

// Both, for a block of channels from k on; sums hold the weights' gradients, then the biases'.
static void add_weight_and_bias_grad(const DirectConv2dBackward& job, const WeightBand& band, int64_t k,
                                     int64_t channels, float* sums) {
  const Conv2dShape& conv = job.conv;
  const int64_t weights = conv.C * conv.R * conv.S;
  if (job.want_weight) add_weight_grad(conv, band, channels, sums + k * weights);
  if (job.want_bias) add_bias_grad(conv, band, channels, sums + conv.K * weights + k);
}

// to[channel][row][column] = grad_output, zero wherever the ReLU's output is not positive.
static void copy_clipped(const DirectConv2dBackward& job, int64_t n, int64_t k, int64_t channels, int64_t top,
                         int64_t rows, float* __restrict to) {
  const int64_t Q = job.conv.Q, step = job.output.stride.w;
  for (int64_t channel = k; channel < k + channels; ++channel) {
    for (int64_t p = top; p < top + rows; ++p, to += Q) {
      const float *g = job.grad_output.at(n, channel, p, 0), *y = job.output.at(n, channel, p, 0);
      if (step == 1) {
        for (int64_t q = 0; q < Q; ++q) to[q] = y[q] <= 0 ? 0.0f : g[q];
      } else {
        for (int64_t q = 0; q < Q; ++q) to[q] = y[q * step] <= 0 ? 0.0f : g[q];
      }
    }
  }
}

struct DirectWeightScratch {
  PaddedPlanes input;
  float *x, *dy;
  int64_t bytes;

  DirectWeightScratch(void* memory, const Conv2dShape& conv, int64_t band) : input(direct_input(conv, band)) {
    Scratch scratch(memory);
    x = scratch.take<float>(conv.C * input.plane());
    dy = scratch.take<float>(kWeightTileChannels * band * conv.Q);
    bytes = static_cast<int64_t>(scratch.used());
  }
};

static void direct_conv2d_weight(const DirectConv2dBackward& job, int64_t task, float* sums, char* workspace) {
  const Conv2dShape& conv = job.conv;
  const int64_t units = conv.N * job.plan.bands, slices = job.plan.slices;
  const DirectWeightScratch scratch(workspace, conv, job.plan.band);
  const Parts<kWeightTileChannels> blocks(conv.K);
  for (int64_t unit = task * units / slices; unit < (task + 1) * units / slices; ++unit) {
    const int64_t n = unit / job.plan.bands, top = unit % job.plan.bands * job.plan.band;
    const int64_t rows = min(job.plan.band, conv.P - top);
    copy_direct_input(conv, job.input, n, top, scratch.input, scratch.x);
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t k = blocks.begin(block), channels = blocks.size(block);
      const Strides& stride = job.grad_output.stride;
      WeightBand band{scratch.x, scratch.input, job.grad_output.at(n, k, top, 0), stride.c, stride.h, rows};
      if (job.output.data != nullptr) {
        copy_clipped(job, n, k, channels, top, rows, scratch.dy);
        band.dy = scratch.dy, band.dy_plane = rows * conv.Q, band.dy_pitch = conv.Q;
      }
      add_weight_and_bias_grad(job, band, k, channels, sums);
    }
  }
}

static bool direct_conv2d_weight_plan(const Conv2dShape& conv, DirectConv2dBackwardPlan* plan) {
  // Larger kernels repay the transposition that lanes over channels take, if they can be filled.
  DirectConv2dPlan forward;
  const bool small = conv.R * conv.S <= 9 || conv.K < kLanes<float>;
  if (conv.C > 4 || !small || !direct_conv2d_plan(conv, &forward)) return false;
  const int64_t weights = conv.K * conv.C * conv.R * conv.S;
  const auto bytes = [&](int64_t rows) { return DirectWeightScratch(nullptr, conv, rows).bytes; };
  plan->band = band_of(conv.P, conv.N, weights * conv.Q, [&](int64_t rows) { return bytes(rows) <= kWeightBandBytes; });
  // Rows so wide that not even one fits are for others.
  if (bytes(plan->band) > 2 * kWeightBandBytes) return false;
  plan->bands = ceil_div(conv.P, plan->band);
  plan->packed_weight = 0;
  plan->slices = reduction_slices(conv.N * plan->bands, weights * 4);
  plan->workspace_bytes = bytes(plan->band);
  return true;
}

// Of a first layer: there is no gradient of the input, nor a forward of its own.
constexpr DirectConv2dKernels direct_conv2d_weight_kernels() {
  return {nullptr, nullptr, nullptr, direct_conv2d_weight_plan, nullptr, direct_conv2d_weight};
}

}  // namespace cnnfast::CNNFAST_ISA
