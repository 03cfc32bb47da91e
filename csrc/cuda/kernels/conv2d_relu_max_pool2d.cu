// Fused convolution + bias + ReLU + 2x2 max-pool.
//
// A block holds its images (or a band of one) and all weights in shared memory. A thread computes kFusedChannels output
// channels of one pooled pixel: its (S + 1) x (S + 1) inputs are read once, two columns at a time, and each weight
// meets the four positions of the window, so that 36 multiply-adds of a 3x3 kernel share a read of four weights.
#include "cuda/conv2d_relu_max_pool2d.h"
#include "cuda/kernels/tile.h"

namespace cnnfast {
namespace {

struct Args {
  Conv2dShape conv;
  Pool2dShape pool;
  FusedPlan plan;
  View<const float> input, weight;
  const float* bias;
  View<float> output;
  View<uint8_t> code;
};

struct alignas(8) Columns {
  float x[2];
};
struct alignas(16) Channels {
  float w[kFusedChannels];
};

// Per block of kFusedChannels output channels: biases, then [C][R][S] weights, channels innermost; zero beyond K.
CNNFAST_DEVICE void load_weights(const Args& a, float* to) {
  constexpr int kChannels = static_cast<int>(kFusedChannels);
  const int K = static_cast<int>(a.conv.K), S = static_cast<int>(a.conv.S);
  const int filter = static_cast<int>(a.conv.R) * S, taps = static_cast<int>(a.conv.C) * filter;
  const auto place = [&](int k, int tap) {
    return k / kChannels * kChannels * (1 + taps) + tap * kChannels + k % kChannels;
  };
  for (Walk at(static_cast<int>(a.conv.C), filter); at.outer < K; at.next())
    to[place(at.outer, 1 + at.middle * filter + at.inner)] =
        *a.weight.at(at.outer, at.middle, at.inner / S, at.inner % S);
  for (int k = thread_rank(); k < K; k += block_threads()) to[place(k, 0)] = a.bias != nullptr ? a.bias[k] : 0.0f;
  const int beyond = static_cast<int>(round_up(K, kChannels)) - K;
  for (int i = thread_rank(); i < beyond * (1 + taps); i += block_threads()) to[place(K + i % beyond, i / beyond)] = 0;
}

// The first of equal values wins, a NaN wins over any number and the last NaN over earlier ones.
CNNFAST_DEVICE void pool_window(const float (&window)[4], float* value, uint8_t* code) {
  float best = window[0];
  int winner = 0;
#pragma unroll
  for (int i = 1; i < 4; ++i)
    if (window[i] > best || window[i] != window[i]) best = window[i], winner = i;
  *value = best <= 0 ? 0.0f : best;
  *code = best <= 0 ? kClipped : static_cast<uint8_t>(winner);
}

template <int kSize>
__global__ void fused(Args a, int64_t blocks) {
  constexpr int kChannels = static_cast<int>(kFusedChannels), kPatch = kSize + 1, kPairs = (kPatch + 1) / 2;
  CNNFAST_DYNAMIC_SHARED(float, weights);
  const int C = static_cast<int>(a.conv.C), K = static_cast<int>(a.conv.K), Q = static_cast<int>(a.pool.Q);
  const int pitch = static_cast<int>(a.plan.input.pitch), plane = static_cast<int>(a.plan.input.plane());
  const int groups = (K + kChannels - 1) / kChannels, group_floats = kChannels * (1 + C * kSize * kSize);
  const int most_images = static_cast<int>(a.plan.images), staged = static_cast<int>(a.plan.staged);
  float* const inputs = weights + a.plan.weights;
  float* const values = inputs + most_images * C * plane;  // [image][staged]
  uint8_t* const codes = reinterpret_cast<uint8_t*>(values + most_images * round_up(staged, 4));

  load_weights(a, weights);
  // Of whole images the zeros stay where they are.
  const bool whole = a.plan.bands == 1;
  const auto band = [&](int64_t top) {
    return Band(a.conv.C, a.conv.H, a.conv.W, 2 * top - a.conv.pad_top, -a.conv.pad_left, a.plan.input);
  };
  if (whole)
    for (int i = 0; i < most_images; ++i) band(0).clear_outside(inputs + i * C * plane);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Divided at = divide(block, a.plan.bands);
    const int64_t first = at.quotient * a.plan.images, top = at.remainder * a.plan.rows;
    const int images = static_cast<int>(min(a.plan.images, a.conv.N - first));
    const int pixels = static_cast<int>(min(a.plan.rows, a.pool.P - top)) * Q;
    const Staged order{K, pixels, by_channel(a.output)};
    for (int i = 0; i < images; ++i) {
      if (!whole) band(top).clear_outside(inputs);
      band(top).load_inside(a.input, first + i, inputs + i * C * plane);
    }
    __syncthreads();
    for (int item = thread_rank(); item < images * groups * pixels; item += block_threads()) {
      const int pixel = item % pixels, group = item / pixels % groups, image = item / pixels / groups;
      const int row = pixel / Q, column = pixel % Q;
      const float* x = inputs + image * C * plane + 2 * row * pitch + 2 * column;
      const Channels* w = reinterpret_cast<const Channels*>(weights + group * group_floats);
      float sum[kChannels][4];
#pragma unroll
      for (int k = 0; k < kChannels; ++k)
#pragma unroll
        for (int position = 0; position < 4; ++position) sum[k][position] = w->w[k];
      ++w;
      for (int c = 0; c < C; ++c, x += plane) {
        float patch[kPatch][2 * kPairs];
#pragma unroll
        for (int r = 0; r < kPatch; ++r)
#pragma unroll
          for (int pair = 0; pair < kPairs; ++pair) {
            const Columns two = *reinterpret_cast<const Columns*>(x + r * pitch + 2 * pair);
            patch[r][2 * pair] = two.x[0], patch[r][2 * pair + 1] = two.x[1];
          }
#pragma unroll
        for (int r = 0; r < kSize; ++r)
#pragma unroll
          for (int t = 0; t < kSize; ++t, ++w) {
            const Channels channels = *w;
#pragma unroll
            for (int k = 0; k < kChannels; ++k)
#pragma unroll
              for (int position = 0; position < 4; ++position)
                sum[k][position] += channels.w[k] * patch[r + position / 2][t + position % 2];
          }
      }
#pragma unroll
      for (int k = 0; k < kChannels; ++k) {
        const int channel = group * kChannels + k;
        if (channel >= K) break;
        const int to = image * staged + order.at(channel, pixel);
        pool_window(sum[k], values + to, codes + to);
      }
    }
    __syncthreads();
    for (int i = 0; i < images; ++i) {
      store_staged(order, values + i * staged, a.output, first + i, top);
      if (a.code.data != nullptr) store_staged(order, codes + i * staged, a.code, first + i, top);
    }
    __syncthreads();  // before the next block's results
  }
}

}  // namespace

void fused_forward(Cuda device, const Conv2dShape& conv, const Pool2dShape& pool, View<const float> input,
                   View<const float> weight, const float* bias, View<float> output, View<uint8_t> code) {
  const FusedPlan plan = fused_plan(conv, pool);
  const int64_t blocks = ceil_div(conv.N, plan.images) * plan.bands;
  const Args args{conv, pool, plan, input, weight, bias, output, code};
  const auto kernel = conv.R == 3 ? fused<3> : fused<5>;
  launch_resident("conv2d_relu_max_pool2d", device, kernel, blocks, plan.threads,
                  static_cast<size_t>(plan.shared_bytes), args, blocks);
}

}  // namespace cnnfast
