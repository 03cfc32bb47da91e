// What the pooling ops of every device share.
#pragma once

#include "tensor.h"

namespace cnnfast {

// `tensor`, or a copy of it, whose channels (channels_last) or columns are adjacent in memory.
inline Tensor with_adjacent_elements(const Tensor& tensor, bool channels_last) {
  const int64_t dims = tensor.dim();
  if (tensor.stride(channels_last ? dims - 3 : dims - 1) == 1) return tensor;
  const int64_t batch = dims == 4 ? tensor.size(0) : 1;
  Tensor copy =
      empty(tensor, {batch, tensor.size(dims - 3), tensor.size(dims - 2), tensor.size(dims - 1)}, dims, channels_last);
  torch::stable::copy_(copy, tensor);
  return copy;
}

}  // namespace cnnfast
