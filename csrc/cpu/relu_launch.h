// The ReLU's launcher, for the launchers of ops built on it.
#pragma once

#include "tensor.h"

namespace cnnfast {

// grad_output, zero wherever `output`, ReLU's result of the same shape and dtype, is not positive; in output's layout.
Tensor relu_backward(const Tensor& grad_output, const Tensor& output);

}  // namespace cnnfast
