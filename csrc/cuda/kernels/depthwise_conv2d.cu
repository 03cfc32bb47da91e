// Depthwise convolution: as many bytes as products, so what counts is that every byte comes once from memory and that
// indices are computed seldom. A thread holds its channel's weights in registers and computes a strip of outputs across
// the direction in which neighbouring threads lie, so that a row of the source serves the outputs of the strip it
// meets.
#include "cuda/depthwise_conv2d.h"
#include "cuda/kernels/block_sum.h"

namespace cnnfast {
namespace {

constexpr int kStrip = 4;  // outputs of a thread

// How a grid of outputs is dealt out: `inner` along memory, `strips` of kStrip across.
struct Deal {
  bool channels_last;
  int64_t channels, strips, count;  // count of threads
};

// kTaps rows and columns or fewer, whose weights then are zero. kUnit: outputs and taps are one row apart.
template <class T, int kTaps, bool kUnit>
__global__ void __launch_bounds__(kThreads, kTaps == 3 ? 2 : 1)
    depthwise(GatherConv conv, View<const T> source, GatherWeight<const T> weight, const T* bias, bool relu,
              View<T> output, Deal deal) {
  using A = Compute<T>;
  for_each_index(deal.count, [&](int64_t index) {
    // Strips lie along h in NCHW, where neighbours are of one row, and along w in channels_last.
    const GatherAxis &along = deal.channels_last ? conv.w : conv.h, &across = deal.channels_last ? conv.h : conv.w;
    const ImageIndex at = deal.channels_last ? image_index(index, deal.channels, across.outputs, deal.strips, true)
                                             : image_index(index, deal.channels, deal.strips, across.outputs, false);
    const int64_t first = (deal.channels_last ? at.w : at.h) * kStrip, other = deal.channels_last ? at.h : at.w;
    const Divided group = divide(at.c, conv.M);
    const T* const from = source.at(at.n, group.quotient, 0, 0);
    const int64_t step_along = deal.channels_last ? source.stride.w : source.stride.h;
    const int64_t step_across = deal.channels_last ? source.stride.h : source.stride.w;

    // [along][across]
    A filter[kTaps][kTaps];
    const T* const weights = weight.data + group.quotient * weight.group + group.remainder * weight.m;
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int64_t r = deal.channels_last ? j : i, t = deal.channels_last ? i : j;
        filter[i][j] = r < conv.h.taps && t < conv.w.taps
                           ? load(weights + (conv.h.first_tap + r * conv.h.tap_stride) * weight.r +
                                  (conv.w.first_tap + t * conv.w.tap_stride) * weight.s)
                           : A(0);
      }

    const int64_t begin = other * across.step + across.origin;
    // The row at coordinate `place`: kTaps elements, zeros outside the image.
    const auto load_row = [&](int64_t place, A(&row)[kTaps]) {
      const bool inside = place >= 0 && place < along.size;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int64_t p = begin + j * across.spread;
        const bool exists = inside && j < across.taps && p >= 0 && p < across.size;
        row[j] = exists ? load(from + place * step_along + p * step_across) : A(0);
      }
    };
    A sum[kStrip];
#pragma unroll
    for (int i = 0; i < kStrip; ++i) sum[i] = bias != nullptr ? load(bias + at.c) : A(0);
    const int64_t origin = first * along.step + along.origin;
    if (kUnit) {
#pragma unroll
      for (int place = 0; place < kStrip + kTaps - 1; ++place) {
        A row[kTaps];
        load_row(origin + place, row);
#pragma unroll
        for (int i = 0; i < kStrip; ++i)
          if (place >= i && place - i < kTaps && place - i < along.taps)
#pragma unroll
            for (int j = 0; j < kTaps; ++j)
              if (j < across.taps) sum[i] += row[j] * filter[(place - i) % kTaps][j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kStrip; ++i)
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          if (tap >= along.taps) continue;
          A row[kTaps];
          load_row(origin + i * along.step + tap * along.spread, row);
#pragma unroll
          for (int j = 0; j < kTaps; ++j)
            if (j < across.taps) sum[i] += row[j] * filter[tap][j];
        }
    }
    T* const to = output.at(at.n, at.c, deal.channels_last ? other : first, deal.channels_last ? first : other);
    const int64_t step = deal.channels_last ? output.stride.w : output.stride.h;
#pragma unroll
    for (int i = 0; i < kStrip; ++i)
      // A NaN stays one.
      if (first + i < along.outputs) store(to + i * step, relu && sum[i] < 0 ? A(0) : sum[i]);
  });
}

// The sum over the threads whose rank is the same modulo kLanes, in the first of them. `shared` has an element a thread
// and may be used again at once. All threads of the block must call it.
template <int kLanes, class A>
CNNFAST_DEVICE A sum_of_lane(A value, A* shared) {
  __syncthreads();
  if constexpr (kLanes == 1) return block_sum(value, shared);
  shared[threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.x >= kLanes) return value;
  for (int i = kLanes; i < kThreads; i += kLanes) value += shared[threadIdx.x + i];
  return value;
}

// A block sums one slice of the pixels for all weights of one output channel, its threads side by side along w; or, in
// channels_last, for kLanes = 32 channels side by side.
template <class T, int kTaps, int kLanes>
__global__ void __launch_bounds__(kThreads, kTaps == 3 ? 2 : 1)
    depthwise_weight(Conv2dShape s, View<const T> input, View<const T> grad_output, int64_t slices, int64_t blocks_k,
                     Compute<T>* partial) {
  using A = Compute<T>;
  CNNFAST_SHARED(A, shared, kThreads);
  const int lane = static_cast<int>(threadIdx.x) % kLanes, rank = static_cast<int>(threadIdx.x) / kLanes;
  const Divided at = divide(blockIdx.x, blocks_k);
  const int64_t k = at.remainder * kLanes + lane, c = divide(min(k, s.K - 1), s.K / s.G).quotient;
  const int64_t pixels = s.N * s.P * s.Q, end = k < s.K ? pixels * (at.quotient + 1) / slices : 0;
  A sum[kTaps][kTaps] = {};
  for (int64_t pixel = pixels * at.quotient / slices + rank; pixel < end; pixel += kThreads / kLanes) {
    const ImageIndex to = image_index(pixel, 1, s.P, s.Q, false);
    const A g = load(grad_output.at(to.n, k, to.h, to.w));
    const int64_t h0 = to.h * s.stride_h - s.pad_top, w0 = to.w * s.stride_w - s.pad_left;
#pragma unroll
    for (int r = 0; r < kTaps; ++r)
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const int64_t h = h0 + r * s.dilation_h, w = w0 + t * s.dilation_w;
        if (r < s.R && t < s.S && h >= 0 && h < s.H && w >= 0 && w < s.W)
          sum[r][t] += g * load(input.at(to.n, c, h, w));
      }
  }
#pragma unroll
  for (int r = 0; r < kTaps; ++r)
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      if (r >= s.R || t >= s.S) continue;
      const A all = sum_of_lane<kLanes>(sum[r][t], shared);
      if (rank == 0 && k < s.K) partial[((at.quotient * s.K + k) * s.R + r) * s.S + t] = all;
    }
}

template <class T, int kTaps>
void run(const char* name, Cuda device, const GatherConv& conv, View<const T> source, GatherWeight<const T> weight,
         const T* bias, bool relu, View<T> output) {
  const bool channels_last = output.stride.c < output.stride.w;
  const GatherAxis &along = channels_last ? conv.w : conv.h, &across = channels_last ? conv.h : conv.w;
  const int64_t channels = conv.G * conv.M, strips = ceil_div(along.outputs, int64_t{kStrip});
  const Deal deal{channels_last, channels, strips, conv.N * channels * strips * across.outputs};
  const auto kernel = along.step == 1 && along.spread == 1 ? depthwise<T, kTaps, true> : depthwise<T, kTaps, false>;
  launch_over(name, device, kernel, deal.count, conv, source, weight, bias, relu, output, deal);
}

}  // namespace

template <class T>
void depthwise_conv2d(const char* name, Cuda device, const GatherConv& conv, View<const T> source,
                      GatherWeight<const T> weight, const T* bias, bool relu, View<T> output) {
  const auto kernel = max(conv.h.taps, conv.w.taps) <= 3 ? run<T, 3> : run<T, 5>;
  kernel(name, device, conv, source, weight, bias, relu, output);
}

template <class T>
void depthwise_conv2d_backward_weight(const char* name, Cuda device, const Conv2dShape& s, int64_t slices,
                                      View<const T> input, View<const T> grad_output, Compute<T>* partial) {
  constexpr int kLanes = 32;
  const bool small = max(s.R, s.S) <= 3, channels_last = input.stride.c == 1 && input.stride.w != 1;
  const auto kernel = channels_last ? (small ? depthwise_weight<T, 3, kLanes> : depthwise_weight<T, 5, kLanes>)
                                    : (small ? depthwise_weight<T, 3, 1> : depthwise_weight<T, 5, 1>);
  const int64_t blocks_k = channels_last ? ceil_div(s.K, int64_t{kLanes}) : s.K;
  launch(name, device, kernel, blocks_k * slices, kThreads, 0, s, input, grad_output, slices, blocks_k, partial);
}

#define CNNFAST_INSTANTIATE(T)                                                                                         \
  template void depthwise_conv2d(const char*, Cuda, const GatherConv&, View<const T>, GatherWeight<const T>, const T*, \
                                 bool, View<T>);                                                                       \
  template void depthwise_conv2d_backward_weight(const char*, Cuda, const Conv2dShape&, int64_t, View<const T>,        \
                                                 View<const T>, Compute<T>*);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
