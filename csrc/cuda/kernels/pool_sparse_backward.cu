// Backward of convolution + bias + ReLU + 2x2 max-pool from (pooled gradient, code) alone.
//
// A block takes a slice of the images, one at a time, with all that one needs in shared memory.
//   grad_weight[k][c]: a thread holds the sums of one (k, c) pair over a part of the windows; each live element meets
//                      the R x S inputs around its winner.
//   grad_input: the gradient of the un-pooled map, which is zero but for one winner per window, is laid out in shared
//               memory and never leaves it; a thread computes kGradChannels channels of a 2x2 square of pixels from it
//               (direct_window.h), staged so that they are written side by side.
// A slice's sums of grad_weight are added part by part, the slices in their order.
#include "cuda/conv2d_relu_max_pool2d.h"
#include "cuda/kernels/direct_window.h"

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

// What a block holds of an image.
struct Shared {
  float *input, *map, *filters, *staged;
  float* gradient;  // [K][P * Q]; with grad_input it is read from the map instead
  uint8_t* code;    // [K][P * Q]

  CNNFAST_DEVICE Shared(const PoolSparsePlan& plan, float* base)
      : input(base),
        map(input + plan.input_floats),
        filters(map + plan.map_floats),
        staged(filters + plan.filter_floats),
        gradient(staged + plan.staged_floats),
        code(reinterpret_cast<uint8_t*>(gradient + plan.gradient_floats)) {}
};

// Where the winner of a window lies in the map's tile, from its channel's beginning.
CNNFAST_DEVICE int winner_place(const Args& a, int window_row, int window_column, int winner) {
  const int down = static_cast<int>(a.conv.R - 1 - a.conv.pad_top);
  const int right = static_cast<int>(a.conv.S - 1 - a.conv.pad_left);
  return (2 * window_row + winner / 2 + down) * static_cast<int>(a.plan.map.pitch) + 2 * window_column + winner % 2 +
         right;
}

CNNFAST_DEVICE void load_gradients(const Args& a, int64_t n, bool with_map, const Shared& shared) {
  const int K = static_cast<int>(a.conv.K), Q = static_cast<int>(a.pool.Q), windows = static_cast<int>(a.pool.P) * Q;
  const int plane = static_cast<int>(a.plan.map.plane);
  const auto load = [&](int k, int row, int column) {
    const int place = k * windows + row * Q + column;
    const uint8_t winner = *a.code.at(n, k, row, column);
    shared.code[place] = winner;
    const float g = *a.grad_output.at(n, k, row, column);
    if (!with_map) {
      shared.gradient[place] = g;
    } else if (winner < 4) {
      shared.map[k * plane + winner_place(a, row, column, winner)] = g;
    }
  };
  if (by_channel(a.code)) {
    for (Walk at(Q, K); at.outer < a.pool.P; at.next()) load(at.inner, at.outer, at.middle);
  } else {
    for (Walk at(static_cast<int>(a.pool.P), Q); at.outer < K; at.next()) load(at.outer, at.middle, at.inner);
  }
}

template <int kSize>
CNNFAST_DEVICE void write_grad_input(const Args& a, const Shared& shared, const Staged& order) {
  constexpr int kChannels = static_cast<int>(kGradChannels);
  const int C = static_cast<int>(a.conv.C), K = static_cast<int>(a.conv.K);
  const int H = static_cast<int>(a.conv.H), W = static_cast<int>(a.conv.W);
  const int pitch = static_cast<int>(a.plan.map.pitch), plane = static_cast<int>(a.plan.map.plane);
  const int columns = (W + 1) / 2, squares = (H + 1) / 2 * columns, groups = (C + kChannels - 1) / kChannels;
  const Filters<kChannels> filters{K, kSize * kSize};
  for (int item = thread_rank(); item < squares * groups; item += block_threads()) {
    const int square = item % squares, group = item / squares, h = 2 * (square / columns), w = 2 * (square % columns);
    float sum[kChannels][4];
    direct_window<kSize>(shared.map + h * pitch + w, pitch, plane, K, shared.filters + group * filters.block(), sum);
#pragma unroll
    for (int k = 0; k < kChannels; ++k)
#pragma unroll
      for (int position = 0; position < 4; ++position) {
        const int c = group * kChannels + k, row = h + position / 2, column = w + position % 2;
        if (c < C && row < H && column < W) shared.staged[order.at(c, row * W + column)] = sum[k][position];
      }
  }
}

template <int kSize>
__global__ void backward(Args a) {
  constexpr int kTaps = kSize * kSize;
  CNNFAST_DYNAMIC_SHARED(float, base);
  const Shared shared(a.plan, base);
  const int C = static_cast<int>(a.conv.C), K = static_cast<int>(a.conv.K), Q = static_cast<int>(a.pool.Q);
  const int P = static_cast<int>(a.pool.P), windows = P * Q, parts = static_cast<int>(a.plan.parts);
  const int pitch = static_cast<int>(a.plan.input.pitch), rank = thread_rank();
  const bool with_map = a.grad_input.data != nullptr;

  // This thread's pair of channels, and its part of their windows. Neighbours have neighbouring c and the same k.
  const int c = rank % C, k = rank / C % K, part = rank / C / K;
  const bool sums_weight = a.partial != nullptr && part < parts;
  float sum[kTaps] = {}, bias = 0;

  const Band input(C, a.conv.H, a.conv.W, -a.conv.pad_top, -a.conv.pad_left, a.plan.input);
  input.clear_outside(shared.input);
  const Strides& w = a.weight.stride;
  if (with_map)
    Filters<static_cast<int>(kGradChannels)>{K, kTaps}.load(
        {a.weight.at(0, 0, kSize - 1, kSize - 1), {w.c, w.n, -w.h, -w.w}}, C, kSize, nullptr, shared.filters);
  const Staged order{C, static_cast<int>(a.conv.H * a.conv.W), by_channel(a.grad_input)};

  const int64_t slice = blockIdx.x, end = a.conv.N * (slice + 1) / a.plan.slices;
  for (int64_t n = a.conv.N * slice / a.plan.slices; n < end; ++n) {
    if (with_map) {
      for (int i = rank; i < a.plan.map_floats; i += block_threads()) shared.map[i] = 0;
      __syncthreads();
    }
    if (a.partial != nullptr) input.load_inside(a.input, n, shared.input);
    load_gradients(a, n, with_map, shared);
    __syncthreads();
    if (sums_weight) {
      const uint8_t* const codes = shared.code + k * windows;
      const float* const map = shared.map + k * a.plan.map.plane;
      int row = part / Q, column = part % Q;
      for (int window = part; window < windows; window += parts) {
        const int winner = codes[window];
        if (winner < 4) {
          const float g = with_map ? map[winner_place(a, row, column, winner)] : shared.gradient[k * windows + window];
          const float* const patch =
              shared.input + c * a.plan.input.plane + (2 * row + winner / 2) * pitch + 2 * column + winner % 2;
          bias += g;
#pragma unroll
          for (int tap = 0; tap < kTaps; ++tap) sum[tap] += g * patch[tap / kSize * pitch + tap % kSize];
        }
        for (column += parts; column >= Q; column -= Q) ++row;
      }
    }
    if (with_map) {
      write_grad_input<kSize>(a, shared, order);
      __syncthreads();
      store_staged(order, shared.staged, a.grad_input, n, 0);
    } else {
      __syncthreads();  // before the next image, which otherwise begins with a barrier
    }
  }
  if (a.partial == nullptr) return;

  // The parts of a pair are added in their order. All that they overwrite has been read before the last barrier, but
  // for what is staged.
  if (with_map) __syncthreads();
  const int pairs = K * C, all = pairs * kTaps + K;
  if (part < parts) {
    float* const own = base + part * all;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) own[(k * C + c) * kTaps + tap] = sum[tap];
    if (c == 0) own[pairs * kTaps + k] = bias;
  }
  __syncthreads();
  for (int i = rank; i < all; i += block_threads()) {
    float total = 0;
    for (int p = 0; p < parts; ++p) total += base[p * all + i];
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
  const PoolSparsePlan plan = pool_sparse_plan(conv, pool, grad_input.data != nullptr);
  const int64_t all = conv.K * (conv.C * conv.R * conv.S + 1);
  const bool want_weight = grad_weight.data != nullptr || grad_bias != nullptr;
  float* partial = want_weight ? device.scratch<float>(plan.slices * all) : nullptr;
  const Args args{conv, pool, plan, grad_output, code, input, weight, grad_input, partial};
  const auto kernel = conv.R == 3 ? backward<3> : backward<5>;
  launch("conv2d_relu_max_pool2d_backward", device, kernel, plan.slices, plan.threads,
         static_cast<size_t>(plan.shared_bytes), args);
  if (want_weight)
    launch_over("conv2d_relu_max_pool2d_backward", device, add_slices, all, partial, plan.slices, all, conv,
                grad_weight, grad_bias);
}

}  // namespace cnnfast
