// While an op runs on CUDA: its tensors' device is the current one, its kernels go to torch's current stream, and
// scratch comes from torch's allocator, which hands it out again in that stream's order.
#pragma once

#include <vector>

#include "cuda/device.h"
#include "ops/device.h"

#ifndef CNNFAST_CUDA_EMULATION
#include <torch/csrc/stable/accelerator.h>
#endif

namespace cnnfast {

template <>
class Guard<Cuda> final : public CudaScratch {
 public:
  explicit Guard(const Tensor& tensor, bool allow_tf32 = false)
      : tensor_(tensor),
        allow_tf32_(allow_tf32)
#ifndef CNNFAST_CUDA_EMULATION
        ,
        device_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
#else
  {
  }
#endif
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

  Cuda device() const { return {stream_, this, allow_tf32_}; }

  void* allocate(size_t bytes) const override {
    scratch_.push_back(empty_vector(tensor_, static_cast<int64_t>(bytes), ScalarType::Byte));
    return scratch_.back().data_ptr();
  }

 private:
  const Tensor& tensor_;
  const bool allow_tf32_;
#ifndef CNNFAST_CUDA_EMULATION
  torch::stable::accelerator::DeviceGuard device_;
#endif
  cudaStream_t stream_ = nullptr;
  mutable std::vector<Tensor> scratch_;
};

}  // namespace cnnfast
