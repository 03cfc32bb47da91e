// What kernels need of CUDA: nvcc's, or in tests the emulation's (tests/cuda_host), which runs the same source on the
// CPU. Kernels take one-dimensional grids and blocks, loop over what a grid does not cover, and are started by launch()
// alone. No file of this folder includes torch.
#pragma once

#include "common/number.h"
#include "cuda/device.h"
#include "error.h"

#ifdef CNNFAST_CUDA_EMULATION
#include "emulation.h"
#else
#include <cuda_runtime.h>
// An array of the block. In the emulation each has exactly its size, and memory that nobody wrote shows.
#define CNNFAST_SHARED(type, name, count) __shared__ type name[count]
// The memory asked for at the launch, at most one array a kernel.
#define CNNFAST_DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char cnnfast_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(cnnfast_shared_bytes)
#endif

namespace cnnfast {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
// Threads of a block where nothing asks for another number.
constexpr int kThreads = 256;

#ifndef CNNFAST_CUDA_EMULATION
inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or whoever asks next is told of it
  fail(what, ": ", cudaGetErrorString(error));
}
#endif

// Starts kernel(args...) on `blocks` blocks of `threads`; none if there is nothing to do.
template <class... Parameters, class... Args>
void launch(const char* name, Cuda device, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
            const Args&... args) {
  const int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  if (blocks == 0) return;
  const auto count = static_cast<unsigned>(min(blocks, kMostBlocks));
#ifdef CNNFAST_CUDA_EMULATION
  (void)device;
  emulation::launch(name, count, static_cast<unsigned>(threads), shared, [&] { kernel(Parameters(args)...); });
#else
  const size_t kFreeShared = size_t{48} << 10;
  if (shared > kFreeShared)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
               name);
  const auto start = [&](Parameters... values) {
    void* pointers[] = {&values...};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(count), dim3(static_cast<unsigned>(threads)),
                            pointers, shared, device.stream);
  };
  check_cuda(start(args...), name);
#endif
}

// Starts a kernel whose blocks take their share of `work` pieces in turn: as many blocks as the device holds at a time,
// for each begins with something that it then keeps. Results must not depend on how many there are.
template <class... Parameters, class... Args>
void launch_resident(const char* name, Cuda device, void (*kernel)(Parameters...), int64_t work, int threads,
                     size_t shared, const Args&... args) {
#ifdef CNNFAST_CUDA_EMULATION
  const int64_t resident = 3;
#else
  int current = 0, multiprocessors = 0, blocks = 0;
  check_cuda(cudaGetDevice(&current), name);
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, current), name);
  check_cuda(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, reinterpret_cast<const void*>(kernel), threads, shared),
      name);
  const int64_t resident = static_cast<int64_t>(multiprocessors) * max(blocks, 1);
#endif
  launch(name, device, kernel, min(work, resident), threads, shared, args...);
}

// Starts a kernel whose threads take `count` indices with for_each_index.
template <class... Parameters, class... Args>
void launch_over(const char* name, Cuda device, void (*kernel)(Parameters...), int64_t count, const Args&... args) {
  launch(name, device, kernel, ceil_div(count, int64_t{kThreads}), kThreads, 0, args...);
}

#ifdef __CUDACC__
#define CNNFAST_DEVICE __device__ __forceinline__
#else
#define CNNFAST_DEVICE inline
#endif

// body(i) for this thread's share of [0, count).
template <class Body>
CNNFAST_DEVICE void for_each_index(int64_t count, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) body(i);
}

// Quotient and remainder of numbers that are not negative. A 64-bit division is some 80 instructions.
struct Divided {
  int64_t quotient, remainder;
};
CNNFAST_DEVICE Divided divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    const auto x = static_cast<uint32_t>(a), y = static_cast<uint32_t>(b);
    return {x / y, x % y};
  }
  return {a / b, a % b};
}

// Element `index` of a dense [N, C, H, W] tensor, in NCHW order or channels_last.
struct ImageIndex {
  int64_t n, c, h, w;
};
CNNFAST_DEVICE ImageIndex image_index(int64_t index, int64_t C, int64_t H, int64_t W, bool channels_last) {
  if (channels_last) {
    const Divided c = divide(index, C), w = divide(c.quotient, W), h = divide(w.quotient, H);
    return {h.quotient, c.remainder, h.remainder, w.remainder};
  }
  const Divided w = divide(index, W), h = divide(w.quotient, H), c = divide(h.quotient, C);
  return {c.quotient, c.remainder, h.remainder, w.remainder};
}

}  // namespace cnnfast
