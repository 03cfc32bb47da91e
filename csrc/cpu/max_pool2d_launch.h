// Max-pooling after ReLU, for launchers that fuse it to what comes before: in max_pool2d.cpp.
#pragma once

#include <tuple>

#include "tensor.h"

namespace cnnfast {

// max(x, 0) of each window of `map` [N, K, H, W] (or unbatched), and the winners' code (uint8, in the memory format
// of the output; empty without return_code). The shape's R * S must be at most kMaxCodedWindow.
std::tuple<Tensor, Tensor> relu_max_pool2d_forward(const Tensor& map, const Pool2dShape& shape, bool return_code);

// The dense gradient of `map`, from the gradient of the pooled output and the code.
Tensor relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& code, const Pool2dShape& shape,
                                bool channels_last);

}  // namespace cnnfast
