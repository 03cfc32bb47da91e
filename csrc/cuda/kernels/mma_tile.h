// What the two matrix products on tensor cores share: a block is four warps, each with a tile of sums in registers, and
// a ring of stages in shared memory, which copies fill while the warps multiply from earlier ones.
#pragma once

#include "cuda/chunks.h"
#include "cuda/kernels/tensor_core.h"

namespace cnnfast {

constexpr int kMmaThreads = 128;
// Elements of a chunk; of the 32 bytes that one mma takes along the sum.
template <class T>
constexpr int kChunkSize = static_cast<int>(kChunkBytes / sizeof(T));
template <class T>
constexpr int kMmaDepth = 2 * kChunkSize<T>;

// A warp's kRows x kColumns sums, as fragments.
template <class T, int kRows, int kColumns>
struct WarpSums {
  static constexpr int kRowBlocks = kRows / 16, kColumnBlocks = kColumns / 8;
  float sums[kRowBlocks][kColumnBlocks][4] = {};

  // Adds one mma's depth: fragments a of all rows, b of columns 16 * pair and on.
  CNNFAST_DEVICE void multiply_pair(const uint32_t (&a)[kRowBlocks][4], int pair, const uint32_t (&b)[4]) {
    using E = TensorElement<T>;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
      multiply(E{}, sums[i][2 * pair], a[i], b[0], b[1]);
      multiply(E{}, sums[i][2 * pair + 1], a[i], b[2], b[3]);
    }
  }

  // body(row, column, sum) for each of this lane's.
  template <class Body>
  CNNFAST_DEVICE void for_each(const Body& body) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
      for (int j = 0; j < kColumnBlocks; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) body(16 * i + 8 * (k / 2) + lane / 4, 8 * j + lane % 4 * 2 + k % 2, sums[i][j][k]);
  }
};

// Registers of a fragment as mma wants them; a float must lose the end of its mantissa.
template <class T>
CNNFAST_DEVICE void round_fragment(uint32_t (&r)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = to_tf32(r[i]);
  }
}

// Runs the ring: fetch(step, stage) issues the copies of a step, compute(stage) multiplies them.
template <int kStages, class Fetch, class Compute>
CNNFAST_DEVICE void run_stages(int64_t steps, const Fetch& fetch, const Compute& compute) {
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) fetch(step, step);
    commit_copies();
  }
  int stage = 0, filled = kStages - 1;
  for (int64_t step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    // All copies of this step are there, and nobody reads the stage before it any more.
    __syncthreads();
    if (step + kStages - 1 < steps) fetch(step + kStages - 1, filled);
    commit_copies();
    compute(stage);
    if (++stage == kStages) stage = 0;
    if (++filled == kStages) filled = 0;
  }
}

}  // namespace cnnfast
