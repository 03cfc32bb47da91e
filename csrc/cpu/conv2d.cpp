// conv2d, with and without ReLU, on the CPU.
#include "ops/conv2d.h"

#include "cpu/conv2d_launch.h"
#include "cpu/guard.h"
#include "cpu/relu.h"

namespace cnnfast {

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv2d_forward", TORCH_BOX(&conv2d_forward_op<Cpu>));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward_op<Cpu>));
  m.impl("conv2d_relu_backward", TORCH_BOX(&conv2d_relu_backward_op<Cpu>));
  m.impl("conv2d", TORCH_BOX((&conv2d_op<Cpu, false>)));
  m.impl("conv2d_relu", TORCH_BOX((&conv2d_op<Cpu, true>)));
}

}  // namespace cnnfast
