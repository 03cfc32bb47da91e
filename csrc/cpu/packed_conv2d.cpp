// conv2d with weights that are packed once for many calls: of networks that only infer.
//
// Packing reads weights out of order, and takes longer than the sums where a layer has few pixels. Packed, they are
// read as they lie, even when another layer has pushed them out of the cache.
#include "cpu/conv2d_launch.h"
#include "cpu/guard.h"
#include "cpu/implicit_gemm.h"
#include "cpu/relu.h"
#include "cpu/winograd_conv2d.h"
#include "ops/conv2d.h"

namespace cnnfast {
namespace {

// With more pixels, packing is a few hundredths of the time.
constexpr int64_t kFewPixels = 4096;

bool pays_to_keep(const Conv2dShape& s, const Strides& weight, const Strides& output) {
  const int64_t pixels = s.N * s.P * s.Q;
  return s.G == 1 && pixels > 0 && pixels <= kFewPixels && !direct_conv2d_takes(s, output) &&
         !winograd_takes(s, weight, WinogradRival::packed_sums);
}

// A vector for conv2d_packed_forward; empty where it would gain nothing.
Tensor pack_weight(const Tensor& input, const Tensor& weight, const IntList& options) {
  constexpr const char* kOp = "conv2d_pack_weight";
  check_options(kOp, options, Conv2dOptions::kCount + 1);
  const Conv2dShape s = conv2d_shape("conv2d", input, weight, std::nullopt, conv2d_options(options));
  if (input.scalar_type() != ScalarType::Float) return empty_vector(input, 0);
  const Strides x = view_of<const float>(input).stride;
  const Strides y = dense_strides(s.K, s.P, s.Q, conv_channels_last(input, weight));
  const View<const float> w = view_of<const float>(weight);
  if (!pays_to_keep(s, w.stride, y)) return empty_vector(input, 0);
  const Tensor packed = empty_vector(input, implicit_gemm_packed_floats(s, x, y));
  implicit_gemm_pack(s, x, y, w, data_of<float>(packed));
  return packed;
}

Tensor packed_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                      const Tensor& packed, const IntList& options, int64_t activation,
                      const std::optional<Tensor>& residual) {
  constexpr const char* kOp = "conv2d_packed_forward";
  check_options(kOp, options, Conv2dOptions::kCount + 1);
  check_epilogue<Cpu>(kOp, activation, residual);
  const Conv2dShape s = conv2d_shape("conv2d", input, weight, bias, conv2d_options(options));
  CNNFAST_CHECK(input.scalar_type() == ScalarType::Float && packed.scalar_type() == ScalarType::Float, kOp,
                ": input and packed must be float32, but got input.dtype=", input.scalar_type(),
                ", packed.dtype=", packed.scalar_type());
  if (residual.has_value()) check_same(kOp, "residual", *residual, "input", input);
  const Tensor output = empty(input, {s.N, s.K, s.P, s.Q}, input.dim(), conv_channels_last(input, weight));
  const View<const float> x = view_of<const float>(input), w = view_of<const float>(weight);
  const View<float> y = view_of<float>(output);
  const bool fits = packed.numel() == implicit_gemm_packed_floats(s, x.stride, y.stride);
  const std::optional<Tensor> dense_bias = dense(bias), added = residual_for(kOp, residual, output);
  implicit_gemm_forward(s, x, w, bias_data<float>(dense_bias),
                        epilogue_of<float>(static_cast<Activation>(activation), added), y,
                        fits ? data_of<const float>(packed) : nullptr);
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv2d_pack_weight", TORCH_BOX(&pack_weight));
  m.impl("conv2d_packed_forward", TORCH_BOX(&packed_forward));
}

}  // namespace cnnfast
