// Average-pooling on CUDA: kernels/avg_pool2d.cu.
#pragma once

#include "common/avg_pool2d.h"
#include "common/number.h"
#include "cuda/device.h"

namespace cnnfast {

template <class T>
void avg_pool2d_forward(Cuda, const AvgPool2dForward<T>& args);
template <class T>
void avg_pool2d_backward(Cuda, const AvgPool2dBackward<T>& args);

}  // namespace cnnfast
