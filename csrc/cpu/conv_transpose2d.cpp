// conv_transpose2d on the CPU.
#include "ops/conv_transpose2d.h"

#include "cpu/conv2d_launch.h"
#include "cpu/guard.h"
#include "cpu/relu.h"

namespace cnnfast {

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv_transpose2d_forward", TORCH_BOX(&conv_transpose2d_forward_op<Cpu>));
  m.impl("conv_transpose2d", TORCH_BOX(&conv_transpose2d_op<Cpu>));
  m.impl("conv_transpose2d_backward", TORCH_BOX(&conv_transpose2d_backward_op<Cpu>));
}

}  // namespace cnnfast
