// The weight and bias gradients of a first layer (+ ReLU), vectorised over output channels.
//
//   grad_weight[tap][k] = sum over p, q of input[p * stride_h, q * stride_w, tap] * grad_output[p][q][k]
//   grad_bias[k]        = sum over p, q of grad_output[p][q][k]
//
// where grad_output is zero wherever the ReLU clipped. A tile is 6 taps times 2 registers of channels, or 4 times 3,
// summed over a band of pixels: the forward's tile with pixels and taps exchanged. The input is read as in the forward;
// the band of grad_output is packed once for all taps, block by block of channels. The gradient of the input, which a
// first layer does without, is left to others.
#pragma once

#include "cpu/kernels/direct_conv2d_channels.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int64_t kPackedGradientBytes = 64 << 10;  // a band's gradients of one block of channels

// The pixels of a band: rows and columns, and how far apart they are in the input and in packed gradients.
struct BandPixels {
  int64_t rows, columns;
  int64_t x_row, x_step;
};

// sums[t][lane] += sum over pixels of x[offset[t]] * gradient[lane], kTaps taps by kVectors registers.
template <int kTaps, int kVectors>
__attribute__((noinline)) void channels_weight_tile(const BandPixels& pixels, const float* x, const int64_t* offset,
                                                    const float* gradient, float* sums) {
  constexpr int64_t kWidth = kVectors * kLanes<float>;
  Vec<float> sum[kTaps][kVectors] = {};
  const float* from[kTaps];
  unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { from[t.value] = x + offset[t.value]; });
  for (int64_t row = 0; row < pixels.rows; ++row) {
    unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { hold(from[t.value]); });
    int64_t at = 0;
    for (int64_t q = 0; q < pixels.columns; ++q, at += pixels.x_step, gradient += kWidth) {
      Vec<float> right[kVectors];
      unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
        right[v.value] = load_vec(gradient + v.value * kLanes<float>);
        pin(right[v.value]);
      });
      unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA {
        const Vec<float> left = broadcast(from[t.value][at]);
        unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
          sum[t.value][v.value] = left * right[v.value] + sum[t.value][v.value];
        });
      });
    }
    unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA { from[t.value] += pixels.x_row; });
  }
  unroll<kTaps>([&](auto t) CNNFAST_INLINE_LAMBDA {
    unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
      float* to = sums + t.value * kWidth + v.value * kLanes<float>;
      store_vec(to, load_vec(to) + sum[t.value][v.value]);
    });
  });
}

// All taps of a block of channels: sums[tap][lane].
template <int kVectors>
static void add_channels_weight_grad(const BandPixels& pixels, int64_t taps, const float* x, const int64_t* offset,
                                     const float* gradient, float* sums) {
  constexpr int kMostTaps = min(kTileRows, kChannelSums / kVectors);
  const int64_t tiles = ceil_div(taps, kMostTaps);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = tile * taps / tiles, end = (tile + 1) * taps / tiles;
    with_constant<1, kMostTaps>(end - begin, [&](auto count) {
      channels_weight_tile<count.value, kVectors>(pixels, x, offset + begin, gradient,
                                                  sums + begin * kVectors * kLanes<float>);
    });
  }
}

// packed[q * packed_step + lane] = gradient of channel k + lane at pixel q of a row, zero where the ReLU's output is
// not positive and in lanes beyond the channels.
static void pack_gradient_row(const DirectConv2dBackward& job, int64_t n, int64_t k, int64_t p, int64_t lanes,
                              float* packed, int64_t packed_step) {
  const int64_t Q = job.conv.Q;
  const Strides &g_stride = job.grad_output.stride, &y_stride = job.output.stride;
  const float* g = job.grad_output.at(n, k, p, 0);
  const float* y = job.output.data == nullptr ? nullptr : job.output.at(n, k, p, 0);
  const bool whole = lanes == kLanes<float>;
  const auto clip = [](Vec<float> gradient, Vec<float> output)
                        CNNFAST_INLINE_LAMBDA { return output <= Vec<float>{} ? Vec<float>{} : gradient; };
  if (whole && g_stride.c == 1 && (y == nullptr || y_stride.c == 1)) {
    for (int64_t q = 0; q < Q; ++q, g += g_stride.w, packed += packed_step) {
      Vec<float> value = load_vec(g);
      if (y != nullptr) value = clip(value, load_vec(y + q * y_stride.w));
      store_vec(packed, value);
    }
    return;
  }
  if (whole && g_stride.w == 1 && packed_step % 4 == 0 && Q >= 4 && kLanes<float> % 8 == 0 &&
      (y == nullptr || y_stride.w == 1)) {
    for (int64_t first = 0; first < kLanes<float>; first += 8) {
      for (int64_t q = 0; q < Q; q += 4) {
        q = min(q, Q - 4);
        float* to = packed + q * packed_step + first;
        transpose_8x4(g + first * g_stride.c + q, g_stride.c, to, packed_step);
        if (y == nullptr) continue;
        float output[4 * 8];
        transpose_8x4(y + first * y_stride.c + q, y_stride.c, output, 8);
        for (int64_t i = 0; i < 4; ++i)
          for (int64_t lane = 0; lane < 8; ++lane)
            to[i * packed_step + lane] = output[i * 8 + lane] <= 0 ? 0.0f : to[i * packed_step + lane];
      }
    }
    return;
  }
  for (int64_t q = 0; q < Q; ++q, packed += packed_step) {
    for (int64_t lane = 0; lane < kLanes<float>; ++lane) {
      const bool clipped = lane >= lanes || (y != nullptr && y[lane * y_stride.c + q * y_stride.w] <= 0);
      packed[lane] = clipped ? 0.0f : g[lane * g_stride.c + q * g_stride.w];
    }
  }
}

// sums[lane] += sum over pixels, in several chains of additions.
template <int kVectors>
static void add_channels_bias_grad(int64_t pixels, const float* gradient, float* sums) {
  constexpr int64_t kChains = 4, kWidth = kVectors * kLanes<float>;
  Vec<float> sum[kChains][kVectors] = {};
  const auto add = [&](auto chain) CNNFAST_INLINE_LAMBDA {
    unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
      sum[chain.value][v.value] += load_vec(gradient + v.value * kLanes<float>);
    });
    gradient += kWidth;
  };
  int64_t q = 0;
  for (; q + kChains <= pixels; q += kChains) unroll<kChains>(add);
  for (; q < pixels; ++q) add(Constant<0>{});
  unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
    float* to = sums + v.value * kLanes<float>;
    store_vec(to, load_vec(to) + ((sum[0][v.value] + sum[1][v.value]) + (sum[2][v.value] + sum[3][v.value])));
  });
}

struct ChannelsWeightScratch {
  int64_t* offset;
  float *input, *gradient, *sums;  // sums[block][bias and taps][lane]
  int64_t sums_floats;
  size_t bytes;

  ChannelsWeightScratch(void* memory, const Conv2dShape& conv, int64_t band) {
    const int64_t taps = conv.C * conv.R * conv.S;
    Scratch scratch(memory);
    offset = scratch.take<int64_t>(taps);
    input = scratch.take<float>(InputBand::floats(conv, band));
    gradient = scratch.take<float>(band * conv.Q * kMostChannelVectors * kLanes<float>);
    sums_floats = (1 + taps) * ChannelBlocks(conv.K).vectors * kLanes<float>;
    sums = scratch.take<float>(sums_floats);
    bytes = scratch.used();
  }
};

static void direct_conv2d_channels_backward(const DirectConv2dBackward& job, int64_t task, float* grad,
                                            char* workspace) {
  const Conv2dShape& conv = job.conv;
  const int64_t units = conv.N * job.plan.bands, slices = job.plan.slices, taps = conv.C * conv.R * conv.S;
  const ChannelBlocks blocks(conv.K);
  const ChannelsWeightScratch scratch(workspace, conv, job.plan.band);
  std::memset(scratch.sums, 0, static_cast<size_t>(scratch.sums_floats) * sizeof(float));
  for (int64_t unit = task * units / slices; unit < (task + 1) * units / slices; ++unit) {
    const int64_t n = unit / job.plan.bands, top = unit % job.plan.bands * job.plan.band;
    const int64_t rows = min(job.plan.band, conv.P - top);
    const InputBand x(conv, job.input, n, top, rows, scratch.input);
    x.tap_offsets(conv, scratch.offset);
    const BandPixels pixels{rows, conv.Q, conv.stride_h * x.h, conv.stride_w * x.w};
    float* sums = scratch.sums;
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t width = blocks.size(block) * kLanes<float>;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t v = 0; v < blocks.size(block); ++v)
          pack_gradient_row(job, n, blocks.first(blocks.begin(block) + v), top + i, blocks.lanes(),
                            scratch.gradient + i * conv.Q * width + v * kLanes<float>, width);
      with_constant<1, kMostChannelVectors>(blocks.size(block), [&](auto vectors) {
        constexpr int kVectors = vectors.value;
        if (job.want_bias) add_channels_bias_grad<kVectors>(rows * conv.Q, scratch.gradient, sums);
        if (job.want_weight)
          add_channels_weight_grad<kVectors>(pixels, taps, x.data, scratch.offset, scratch.gradient, sums + width);
      });
      sums += (1 + taps) * width;
    }
  }
  const float* sums = scratch.sums;
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t width = blocks.size(block) * kLanes<float>;
    for (int64_t v = 0; v < blocks.size(block); ++v) {
      const int64_t k = blocks.first(blocks.begin(block) + v);
      transpose(sums + width + v * kLanes<float>, width, taps, blocks.lanes(), grad + k * taps, taps);
      copy_row(sums + v * kLanes<float>, grad + conv.K * taps + k, blocks.lanes());
    }
    sums += (1 + taps) * width;
  }
}

static bool direct_conv2d_channels_backward_plan(const Conv2dShape& conv, DirectConv2dBackwardPlan* plan) {
  DirectConv2dPlan forward;
  if (!direct_conv2d_channels_plan(conv, &forward)) return false;  // rows that are too wide, too
  const int64_t taps = conv.C * conv.R * conv.S, weights = conv.K * taps;
  const auto fits = [&](int64_t rows) {
    return InputBand::floats(conv, rows) * 4 <= kChannelsBandBytes &&
           rows * conv.Q * 2 * kLanes<float> * 4 <= kPackedGradientBytes;
  };
  plan->band = band_of(conv.P, conv.N, weights * conv.Q, fits);
  plan->bands = ceil_div(conv.P, plan->band);
  plan->packed_weight = 0;
  plan->slices = reduction_slices(conv.N * plan->bands, weights * 4);
  // Partial sums of so few pixels each would take longer to add up than to compute.
  if (conv.N * conv.P * conv.Q * 16 < plan->slices * taps) return false;
  plan->workspace_bytes = static_cast<int64_t>(ChannelsWeightScratch(nullptr, conv, plan->band).bytes);
  return true;
}

constexpr DirectConv2dKernels direct_conv2d_channels_kernels() {
  return {direct_conv2d_channels_plan,
          pack_direct_conv2d_channels,
          direct_conv2d_channels,
          direct_conv2d_channels_backward_plan,
          nullptr,
          direct_conv2d_channels_backward};
}

}  // namespace cnnfast::CNNFAST_ISA
