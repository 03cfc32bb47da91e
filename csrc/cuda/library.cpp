// Every op on CUDA, on one page: the launchers of csrc/ops over the kernels of this folder.
#include <string>

#include "cuda/augment.h"
#include "cuda/avg_pool2d.h"
#include "cuda/conv2d.h"
#include "cuda/conv2d_relu_max_pool2d.h"
#include "cuda/guard.h"
#include "cuda/max_pool2d.h"
#include "cuda/relu.h"
#include "namespace.h"
#include "ops/augment.h"
#include "ops/avg_pool2d.h"
#include "ops/conv2d_relu_max_pool2d.h"
#include "ops/conv_transpose2d.h"

namespace cnnfast {

#ifdef CNNFAST_CUDA_ARCHS
static std::string cuda_archs() { return CNNFAST_CUDA_ARCHS; }

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) { m.impl("cuda_archs", TORCH_BOX(&cuda_archs)); }
#endif

CNNFAST_LIBRARY_IMPL(CNNFAST_CUDA_KEY, m) {
  m.impl("relu_forward", TORCH_BOX(&relu_forward_op<Cuda>));
  m.impl("relu", TORCH_BOX(&relu_forward_op<Cuda>));
  m.impl("relu_backward", TORCH_BOX(&relu_backward_op<Cuda>));
  m.impl("max_pool2d_forward", TORCH_BOX(&max_pool2d_forward_op<Cuda>));
  m.impl("max_pool2d", TORCH_BOX((&max_pool2d_op<Cuda, 8>)));
  m.impl("max_pool2d_with_code", TORCH_BOX((&max_pool2d_op<Cuda, 1>)));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward_op<Cuda>));
  m.impl("avg_pool2d_forward", TORCH_BOX(&avg_pool2d_forward_op<Cuda>));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d_forward_op<Cuda>));
  m.impl("avg_pool2d_backward", TORCH_BOX(&avg_pool2d_backward_op<Cuda>));
  m.impl("conv2d_forward", TORCH_BOX(&conv2d_forward_op<Cuda>));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward_op<Cuda>));
  m.impl("conv2d_relu_backward", TORCH_BOX(&conv2d_relu_backward_op<Cuda>));
  m.impl("conv2d", TORCH_BOX((&conv2d_op<Cuda, false>)));
  m.impl("conv2d_relu", TORCH_BOX((&conv2d_op<Cuda, true>)));
  m.impl("conv_transpose2d_forward", TORCH_BOX(&conv_transpose2d_forward_op<Cuda>));
  m.impl("conv_transpose2d", TORCH_BOX(&conv_transpose2d_op<Cuda>));
  m.impl("conv_transpose2d_backward", TORCH_BOX(&conv_transpose2d_backward_op<Cuda>));
  m.impl("conv2d_relu_max_pool2d_forward", TORCH_BOX(&fused_forward_op<Cuda>));
  m.impl("conv2d_relu_max_pool2d", TORCH_BOX(&fused_op<Cuda>));
  m.impl("conv2d_relu_max_pool2d_backward", TORCH_BOX(&fused_backward_op<Cuda>));
  m.impl("augment", TORCH_BOX(&augment_op<Cuda>));
  m.impl("augment_gray_mean", TORCH_BOX(&augment_gray_mean_op<Cuda>));
  m.impl("augment_maps", TORCH_BOX(&augment_maps_op<Cuda>));
}

}  // namespace cnnfast
