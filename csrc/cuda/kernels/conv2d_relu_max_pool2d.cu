// Fused convolution + bias + ReLU + 2x2 max-pool.
//
// A block holds its images (or a band of one) and all weights in shared memory. A thread computes kFusedChannels output
// channels of one pooled pixel (direct_window.h). Results are staged in shared memory and written in the order in which
// they lie in global memory.
#include "cuda/conv2d_relu_max_pool2d.h"
#include "cuda/kernels/direct_window.h"

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
  constexpr int kChannels = static_cast<int>(kFusedChannels);
  CNNFAST_DYNAMIC_SHARED(float, weights);
  const int C = static_cast<int>(a.conv.C), K = static_cast<int>(a.conv.K), Q = static_cast<int>(a.pool.Q);
  const int pitch = static_cast<int>(a.plan.input.pitch), plane = static_cast<int>(a.plan.input.plane);
  const int most_images = static_cast<int>(a.plan.images), staged = static_cast<int>(a.plan.staged);
  float* const inputs = weights + a.plan.weights;
  float* const values = inputs + most_images * C * plane;  // [image][staged]
  uint8_t* const codes = reinterpret_cast<uint8_t*>(values + most_images * round_up(staged, 4));

  const Filters<kChannels> filters{C, kSize * kSize};
  filters.load(a.weight, K, kSize, a.bias, weights);
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
    const int groups = (K + kChannels - 1) / kChannels;
    const Staged order{K, pixels, by_channel(a.output)};
    for (int i = 0; i < images; ++i) {
      if (!whole) band(top).clear_outside(inputs);
      band(top).load_inside(a.input, first + i, inputs + i * C * plane);
    }
    __syncthreads();
    for (int item = thread_rank(); item < images * groups * pixels; item += block_threads()) {
      const int pixel = item % pixels, group = item / pixels % groups, image = item / pixels / groups;
      float sum[kChannels][4];
      direct_window<kSize>(inputs + image * C * plane + 2 * (pixel / Q) * pitch + 2 * (pixel % Q), pitch, plane, C,
                           weights + group * filters.block(), sum);
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
    // The next inputs may be loaded meanwhile; the barrier after them keeps the next results out.
  }
}

}  // namespace

bool fused_forward(Cuda device, const Conv2dShape& conv, const Pool2dShape& pool, View<const float> input,
                   View<const float> weight, const float* bias, View<float> output, View<uint8_t> code) {
  const FusedPlan plan = fused_plan(conv, pool);
  if (!plan.fits) return false;
  const int64_t blocks = ceil_div(conv.N, plan.images) * plan.bands;
  const Args args{conv, pool, plan, input, weight, bias, output, code};
  const auto kernel = conv.R == 3 ? fused<3> : fused<5>;
  launch_resident("conv2d_relu_max_pool2d", device, kernel, blocks, plan.threads,
                  static_cast<size_t>(plan.shared_bytes), args, blocks);
  return true;
}

}  // namespace cnnfast
