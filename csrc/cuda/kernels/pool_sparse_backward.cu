// Backward of convolution + bias + ReLU + 2x2 max-pool from (pooled gradient, code) alone.
//
// A block takes a slice of the images, one at a time. In shared memory are the padded input, the pooled gradients and
// codes, and the gradient of the un-pooled map, which is zero but for one winner per window and never leaves the block.
//   grad_weight[k][c]: a thread holds the sums of one (k, c) pair over a part of the windows; each live element meets
//                      the R x S inputs around its winner.
//   grad_input[c][h][w]: a thread gathers one element from the map.
// A slice's sums are added part by part, the slices in their order.
#include "cuda/conv2d_relu_max_pool2d.h"
#include "cuda/kernels/tile.h"

namespace cnnfast {
namespace {

struct Args {
  Conv2dShape conv;
  Pool2dShape pool;
  PoolSparsePlan plan;
  View<const float> grad_output;
  View<const uint8_t> code;
  View<const float> input, weight;
  View<float> grad_input;
  float* partial;  // [slices][K * C * R * S + K], null where neither grad_weight nor grad_bias is wanted
};

// The image's gradients and codes, [K][P * Q], and the map's gradient within its zeros.
CNNFAST_DEVICE void load_gradients(const Args& a, int64_t n, float* g, uint8_t* code, float* map) {
  const int K = static_cast<int>(a.conv.K), Q = static_cast<int>(a.pool.Q), windows = static_cast<int>(a.pool.P) * Q;
  const int threads = block_threads(), rank = thread_rank();
  const int pitch = static_cast<int>(a.plan.map.pitch), plane = static_cast<int>(a.plan.map.plane());
  if (a.grad_input.data != nullptr)
    for (int i = rank; i < K * plane; i += threads) map[i] = 0;
  const bool channels_inner = by_channel(a.code);
  for (int i = rank; i < K * windows; i += threads) {
    const int k = channels_inner ? i % K : i / windows, window = channels_inner ? i / K : i % windows;
    const uint8_t winner = *a.code.at(n, k, window / Q, window % Q);
    g[k * windows + window] = winner < 4 ? *a.grad_output.at(n, k, window / Q, window % Q) : 0.0f;
    code[k * windows + window] = winner;
  }
  __syncthreads();
  if (a.grad_input.data == nullptr) return;
  const int down = static_cast<int>(a.conv.R - 1 - a.conv.pad_top);
  const int right = static_cast<int>(a.conv.S - 1 - a.conv.pad_left);
  for (int i = rank; i < K * windows; i += threads) {
    const int k = i / windows, window = i % windows, winner = code[i];
    if (winner >= 4) continue;
    const int row = 2 * (window / Q) + winner / 2 + down, column = 2 * (window % Q) + winner % 2 + right;
    // A winner that meets no input (with less padding than the kernel) has no gradient to give.
    if (row < a.plan.map.rows && column < pitch) map[k * plane + row * pitch + column] = g[i];
  }
}

template <int kSize>
__global__ void backward(Args a) {
  constexpr int kTaps = kSize * kSize;
  CNNFAST_DYNAMIC_SHARED(float, shared);
  const int C = static_cast<int>(a.conv.C), K = static_cast<int>(a.conv.K), Q = static_cast<int>(a.pool.Q);
  const int H = static_cast<int>(a.conv.H), W = static_cast<int>(a.conv.W);
  const int windows = static_cast<int>(a.pool.P) * Q, parts = static_cast<int>(a.plan.parts);
  const int plane = static_cast<int>(a.plan.input.plane()), pitch = static_cast<int>(a.plan.input.pitch);
  const int map_plane = static_cast<int>(a.plan.map.plane()), map_pitch = static_cast<int>(a.plan.map.pitch);
  const int rank = thread_rank(), threads = block_threads();
  float* const x = shared;
  float* const map = x + C * plane;
  float* const g = map + K * map_plane;
  uint8_t* const code = reinterpret_cast<uint8_t*>(g + K * windows);

  // This thread's pair of channels, and its part of their windows. Neighbours have neighbouring c and the same k.
  const int c = rank % C, k = rank / C % K, part = rank / C / K;
  const bool sums_weight = a.partial != nullptr && part < parts;
  float sum[kTaps] = {}, bias = 0;

  const Band input(C, H, W, -a.conv.pad_top, -a.conv.pad_left, a.plan.input);
  input.clear_outside(x);

  const int64_t slice = blockIdx.x, begin = a.conv.N * slice / a.plan.slices;
  const int64_t end = a.conv.N * (slice + 1) / a.plan.slices;
  for (int64_t n = begin; n < end; ++n) {
    input.load_inside(a.input, n, x);
    load_gradients(a, n, g, code, map);
    __syncthreads();
    if (sums_weight) {
      for (int window = part; window < windows; window += parts) {
        const int winner = code[k * windows + window];
        if (winner >= 4) continue;
        const float gradient = g[k * windows + window];
        const float* patch = x + c * plane + (2 * (window / Q) + winner / 2) * pitch + 2 * (window % Q) + winner % 2;
        bias += gradient;
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) sum[tap] += gradient * patch[tap / kSize * pitch + tap % kSize];
      }
    }
    if (a.grad_input.data != nullptr) {
      const bool channels_inner = by_channel(a.grad_input);
      for (int i = rank; i < C * H * W; i += threads) {
        const int to = channels_inner ? i % C : i / (H * W), pixel = channels_inner ? i / C : i % (H * W);
        const int h = pixel / W, w = pixel % W;
        float gradient = 0;
        for (int from = 0; from < K; ++from) {
          const float* near = map + from * map_plane + h * map_pitch + w;
          const float* filter = a.weight.at(from, to, kSize - 1, kSize - 1);
#pragma unroll
          for (int tap = 0; tap < kTaps; ++tap)
            gradient += near[tap / kSize * map_pitch + tap % kSize] *
                        filter[-(tap / kSize) * a.weight.stride.h - (tap % kSize) * a.weight.stride.w];
        }
        *a.grad_input.at(n, to, h, w) = gradient;
      }
    }
    __syncthreads();  // before the next image
  }
  if (a.partial == nullptr) return;

  // The parts of a pair are added in their order; shared memory is free again.
  const int pairs = K * C, all = pairs * kTaps + K;
  if (part < parts) {
    float* const own = shared + part * all;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) own[(k * C + c) * kTaps + tap] = sum[tap];
    if (c == 0) own[pairs * kTaps + k] = bias;
  }
  __syncthreads();
  for (int i = rank; i < all; i += threads) {
    float total = 0;
    for (int p = 0; p < parts; ++p) total += shared[p * all + i];
    a.partial[slice * all + i] = total;
  }
}

__global__ void add_slices(const float* partial, int64_t slices, int64_t all, Conv2dShape s, View<float> grad_weight,
                           float* grad_bias) {
  for_each_index(all, [&](int64_t i) {
    float sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * all + i];
    const int64_t weights = all - s.K;
    if (i >= weights) {
      if (grad_bias != nullptr) grad_bias[i - weights] = sum;
    } else if (grad_weight.data != nullptr) {
      const ImageIndex at = image_index(i, s.C, s.R, s.S, false);
      *grad_weight.at(at.n, at.c, at.h, at.w) = sum;
    }
  });
}

}  // namespace

void pool_sparse_backward(Cuda device, const Conv2dShape& conv, const Pool2dShape& pool, View<const float> grad_output,
                          View<const uint8_t> code, View<const float> input, View<const float> weight,
                          View<float> grad_input, View<float> grad_weight, float* grad_bias) {
  const PoolSparsePlan plan = pool_sparse_plan(conv, pool);
  const int64_t all = conv.K * (conv.C * conv.R * conv.S + 1);
  const bool want_weight = grad_weight.data != nullptr || grad_bias != nullptr;
  float* partial = want_weight ? device.scratch<float>(plan.slices * all) : nullptr;
  const Args args{conv, pool, plan, grad_output, code, input, weight, grad_input, partial};
  const auto kernel = conv.R == 3 ? backward<3> : backward<5>;
  launch("conv2d_relu_max_pool2d_backward", device, kernel, plan.slices, static_cast<int>(plan.threads),
         static_cast<size_t>(plan.shared_floats) * 4, args);
  if (want_weight)
    launch_over("conv2d_relu_max_pool2d_backward", device, add_slices, all, partial, plan.slices, all, conv,
                grad_weight, grad_bias);
}

}  // namespace cnnfast
