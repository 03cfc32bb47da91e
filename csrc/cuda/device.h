// Selects CUDA's overloads (see ops/device.h) and says where their kernels run. Torch-free, and free of CUDA's headers.
#pragma once

#include <cstddef>

#include "common/activation.h"
#include "common/shape.h"

typedef struct CUstream_st* cudaStream_t;

namespace cnnfast {

class CudaScratch {
 public:
  // `bytes` of device memory, 16-byte aligned, which kernels of the guard's stream may use until it ends.
  virtual void* allocate(size_t bytes) const = 0;

 protected:
  ~CudaScratch() = default;
};

struct Cuda {
  static constexpr Activation kLastActivation = Activation::relu;  // that convolution fuses
  static constexpr bool kAddsResidual = false;
  static constexpr bool kWidens = false;  // see ops/widened.h

  cudaStream_t stream;
  const CudaScratch* memory;
  bool allow_tf32;  // whether float32 may be rounded to tf32 for tensor cores

  template <class T>
  T* scratch(int64_t count) const {
    return static_cast<T*>(memory->allocate(static_cast<size_t>(count) * sizeof(T)));
  }
};

}  // namespace cnnfast
