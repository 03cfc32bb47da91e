// The convolution sums of a 2x2 square of pixels, for kChannels output channels: what the fused forward pools, and what
// the input gradient writes.
//
// The square's (kSize + 1) x (kSize + 1) inputs are read once a channel, two columns at a time, and each weight meets
// the four pixels: 36 multiply-adds of a 3x3 kernel share a read of kChannels weights.
#pragma once

#include "cuda/kernels/tile.h"

namespace cnnfast {

template <int kCount>
struct alignas(sizeof(float) * kCount) Floats {
  float x[kCount];
};

// Weights of `outputs` x `inputs` filters in shared memory: for each block of kChannels outputs its biases, then
// [input][R][S] weights, output channels innermost; zero beyond `outputs`.
template <int kChannels>
struct Filters {
  int inputs, taps;  // R * S

  CNNFAST_DEVICE int block() const { return kChannels * (1 + inputs * taps); }
  CNNFAST_DEVICE int at(int output, int input, int tap) const {
    return output / kChannels * block() + (1 + input * taps + tap) * kChannels + output % kChannels;
  }
  // From a view whose (n, c, h, w) are (output, input, r, s), and biases or null; by all threads of the block.
  CNNFAST_DEVICE void load(const View<const float>& weight, int outputs, int S, const float* bias, float* to) const {
    for (Walk from(inputs, taps); from.outer < outputs; from.next())
      to[at(from.outer, from.middle, from.inner)] = *weight.at(from.outer, from.middle, from.inner / S, from.inner % S);
    const int all = (outputs + kChannels - 1) / kChannels * kChannels, beyond = all - outputs;
    for (int k = thread_rank(); k < all; k += block_threads())
      to[k / kChannels * block() + k % kChannels] = k < outputs && bias != nullptr ? bias[k] : 0.0f;
    for (int i = thread_rank(); i < beyond * inputs * taps; i += block_threads())
      to[at(outputs + i % beyond, i / beyond / taps, i / beyond % taps)] = 0;
  }
};

// `x` points at the square's first input in a tile whose channels are `plane` apart, at an even place; `filters` at the
// channels' block of Filters. sum[k][position]: upper row first.
template <int kSize, int kChannels>
CNNFAST_DEVICE void direct_window(const float* x, int pitch, int plane, int inputs, const float* filters,
                                  float (&sum)[kChannels][4]) {
  constexpr int kPatch = kSize + 1, kPairs = (kPatch + 1) / 2;
  const auto* w = reinterpret_cast<const Floats<kChannels>*>(filters);
#pragma unroll
  for (int k = 0; k < kChannels; ++k)
#pragma unroll
    for (int position = 0; position < 4; ++position) sum[k][position] = w->x[k];
  ++w;
  for (int c = 0; c < inputs; ++c, x += plane) {
    float patch[kPatch][2 * kPairs];
#pragma unroll
    for (int r = 0; r < kPatch; ++r)
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const auto two = *reinterpret_cast<const Floats<2>*>(x + r * pitch + 2 * pair);
        patch[r][2 * pair] = two.x[0], patch[r][2 * pair + 1] = two.x[1];
      }
#pragma unroll
    for (int r = 0; r < kSize; ++r)
#pragma unroll
      for (int t = 0; t < kSize; ++t, ++w) {
        const Floats<kChannels> channels = *w;
#pragma unroll
        for (int k = 0; k < kChannels; ++k)
#pragma unroll
          for (int position = 0; position < 4; ++position)
            sum[k][position] += channels.x[k] * patch[r + position / 2][t + position % 2];
      }
  }
}

}  // namespace cnnfast
