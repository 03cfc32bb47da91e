// Fills the kernel table of one instruction set. Each isa/*.cpp defines CNNFAST_ISA and CNNFAST_VECTOR_BYTES, then
// includes this.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/augment.h"
#include "cpu/kernels/avg_pool2d.h"
#include "cpu/kernels/batch_norm_backward.h"
#include "cpu/kernels/channels_last.h"
#include "cpu/kernels/conv2d_backward_weight.h"
#include "cpu/kernels/conv2d_relu_max_pool2d.h"
#include "cpu/kernels/depthwise_conv2d_backward.h"
#include "cpu/kernels/direct_conv2d_backward.h"
#include "cpu/kernels/direct_conv2d_channels_weight.h"
#include "cpu/kernels/fma_peak.h"
#include "cpu/kernels/max_pool2d_backward.h"
#include "cpu/kernels/relu.h"
#include "cpu/kernels/winograd_backward_weight.h"

namespace cnnfast::CNNFAST_ISA {

template <class T>
constexpr KernelsOf<T> kernels_of() {
  return {conv2d_kernels<T>(),     depthwise_kernels<T>(),  relu_kernels<T>(),
          max_pool2d_kernels<T>(), avg_pool2d_kernels<T>(), batch_norm_kernels<T>()};
}

constexpr CpuKernels make_kernels(const char* isa) {
  return {isa,
          CNNFAST_VECTOR_BYTES,
          kernels_of<float>(),
          kernels_of<double>(),
          kernels_of<bfloat16>(),
          kernels_of<float16>(),
          direct_conv2d_kernels(),
          direct_conv2d_weight_kernels(),
          direct_conv2d_channels_kernels(),
          winograd_conv2d_kernels(),
          conv2d_relu_max_pool2d_kernels(),
          channels_last_kernels(),
          augment_kernels(),
          fma_peak_kernel()};
}

}  // namespace cnnfast::CNNFAST_ISA
