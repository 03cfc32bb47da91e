// How an op's launcher, written once in ops/NAME.h, reaches the kernels of its device.
//
// A device is a small torch-free type (Cpu, Cuda) that selects overloads: relu_forward(device, x, y, count) is declared
// in cpu/relu.h and cuda/relu.h. Its Guard is what must live while an op runs: the current device and stream, and
// scratch memory.
#pragma once

#include "tensor.h"

namespace cnnfast {

template <class Device>
class Guard;  // explicit Guard(const Tensor&, bool allow_tf32 = false); Device device() const

}  // namespace cnnfast
