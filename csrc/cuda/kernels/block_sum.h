// Sums over the threads of a block, in one order whatever the schedule: lanes by halves, then warps.
#pragma once

#include "cuda/kernels/launch.h"

namespace cnnfast {

// The sum of every thread's `value`, in thread 0. `shared` has an element for each warp; blocks are whole warps. All
// threads of the block must call it, and may use `shared` again after the next __syncthreads().
template <class A>
CNNFAST_DEVICE A block_sum(A value, A* shared) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_down_sync(kAllLanes, value, distance);
  const unsigned warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) shared[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (unsigned other = 1; other < blockDim.x / kWarp; ++other) value += shared[other];
  return value;
}

}  // namespace cnnfast
