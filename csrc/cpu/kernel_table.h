// The table of kernels one instruction set provides: what isa/*.cpp fill in and the launchers call.
#pragma once

#include "common/number.h"
#include "cpu/augment.h"
#include "cpu/avg_pool2d.h"
#include "cpu/batch_norm.h"
#include "cpu/channels_last.h"
#include "cpu/conv2d.h"
#include "cpu/conv2d_relu_max_pool2d.h"
#include "cpu/depthwise_conv2d.h"
#include "cpu/direct_conv2d.h"
#include "cpu/fma_peak.h"
#include "cpu/max_pool2d.h"
#include "cpu/relu.h"
#include "cpu/winograd_conv2d.h"

namespace cnnfast {

// Kernels that exist for every storage type.
template <class T>
struct KernelsOf {
  Conv2dKernels<T> conv2d;
  DepthwiseKernels<T> depthwise;
  ReluKernels<T> relu;
  MaxPool2dKernels<T> max_pool2d;
  AvgPool2dKernels<T> avg_pool2d;
  BatchNormKernels<T> batch_norm;
};

struct CpuKernels {
  const char* isa;
  int vector_bytes;
  KernelsOf<float> f32;
  KernelsOf<double> f64;
  KernelsOf<bfloat16> bf16;
  KernelsOf<float16> f16;
  // float32 only; other types go the general way.
  DirectConv2dKernels direct_conv2d, direct_conv2d_weight, direct_conv2d_channels;
  WinogradConv2dKernels winograd_conv2d;
  ConvReluMaxPool2dKernels conv2d_relu_max_pool2d;
  ChannelsLastKernels channels_last;
  AugmentKernels augment;
  FmaPeakKernel fma_peak;

  template <class T>
  const KernelsOf<T>& of() const;
};

template <>
inline const KernelsOf<float>& CpuKernels::of<float>() const {
  return f32;
}
template <>
inline const KernelsOf<double>& CpuKernels::of<double>() const {
  return f64;
}
template <>
inline const KernelsOf<bfloat16>& CpuKernels::of<bfloat16>() const {
  return bf16;
}
template <>
inline const KernelsOf<float16>& CpuKernels::of<float16>() const {
  return f16;
}

}  // namespace cnnfast
