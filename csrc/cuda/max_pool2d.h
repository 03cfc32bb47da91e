// Max-pooling on CUDA: kernels/max_pool2d.cu.
#pragma once

#include "common/max_pool2d.h"
#include "common/number.h"
#include "cuda/device.h"

namespace cnnfast {

template <class T, class Stored>
void max_pool2d_forward(Cuda, const MaxPool2dForward<T, Stored>& args);

// A winner outside its window is not found, so its gradient is dropped. (The CPU's kernels raise an error; telling
// would cost a synchronisation here.)
template <class T, class Stored>
void max_pool2d_backward(Cuda, const MaxPool2dBackward<T, Stored>& args);

}  // namespace cnnfast
