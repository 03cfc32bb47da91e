// What the matrix products on the ordinary arithmetic units share. A step's operands are read into registers while the
// step before is multiplied from shared memory, which is there twice, so that one barrier a step is enough.
#pragma once

#include "cuda/kernels/launch.h"

namespace cnnfast {

// fetch() reads the next step's operands, put(buffer) writes them to shared memory, multiply(buffer) uses them.
template <class Fetch, class Put, class Multiply>
CNNFAST_DEVICE void run_buffers(int64_t steps, const Fetch& fetch, const Put& put, const Multiply& multiply) {
  if (steps > 0) {
    fetch();
    put(0);
  }
  __syncthreads();
  for (int64_t step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch();
    multiply(static_cast<int>(step % 2));
    if (step + 1 < steps) {
      put(static_cast<int>((step + 1) % 2));
      __syncthreads();
    }
  }
}

// sums += left right^T
template <class A, int kRows, int kColumns>
CNNFAST_DEVICE void add_products(A (&sums)[kRows][kColumns], const A (&left)[kRows], const A (&right)[kColumns]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sums[i][j] += left[i] * right[j];
}

}  // namespace cnnfast
