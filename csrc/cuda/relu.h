// ReLU on CUDA: kernels/relu.cu. Dense memory, element by element.
#pragma once

#include "common/number.h"
#include "cuda/device.h"

namespace cnnfast {

// output[i] = input[i] < 0 ? 0 : input[i], so that NaN and -0.0 stay what they are, as in torch.
template <class T>
void relu_forward(Cuda, const T* input, T* output, int64_t count);

// grad_input[i] = output[i] <= 0 ? 0 : grad_output[i], so that NaN lets the gradient through, as in torch.
template <class T>
void relu_backward(Cuda, const T* grad_output, const T* output, T* grad_input, int64_t count);

}  // namespace cnnfast
