// conv2d_relu_max_pool2d, forward and backward, of every device.
//
// What a device has fused kernels for takes them; everything else is composed of the general convolution and the
// general ReLU + max-pool with the same code. A device's fused_forward says whether it was right for the shape, and the
// results are finite or right even so.
#pragma once

#include "ops/conv2d.h"
#include "ops/max_pool2d.h"

namespace cnnfast {

constexpr const char* kFused = "conv2d_relu_max_pool2d";
constexpr const char* kFusedBackward = "conv2d_relu_max_pool2d_backward";
constexpr size_t kFusedOptions = Conv2dOptions::kCount + MaxPool2dOptions::kCount + 1;

// Those of the convolution come first.
inline MaxPool2dOptions fused_pool_options(Ints list) {
  return max_pool2d_options(list.subspan(Conv2dOptions::kCount));
}

inline Pool2dShape fused_pool_shape(const Conv2dShape& conv, const MaxPool2dOptions& options) {
  const Pool2dShape pool = pool2d_shape(kFused, conv.N, conv.K, conv.P, conv.Q, options);
  CNNFAST_CHECK(pool.R * pool.S <= kMaxCodedWindow, kFused, ": the pool window must have at most ", kMaxCodedWindow,
                " elements, but got pool_kernel_size=", show(options.kernel_size));
  return pool;
}

template <class Device>
std::tuple<Tensor, Tensor> fused_forward_as(const Tensor& input, const Tensor& weight,
                                            const std::optional<Tensor>& bias, const Conv2dOptions& conv_options,
                                            const MaxPool2dOptions& pool_options, bool return_code) {
  const Conv2dShape conv = conv2d_shape(kFused, input, weight, bias, conv_options);
  const Pool2dShape pool = fused_pool_shape(conv, pool_options);
  const Guard<Device> guard(input);
  if (input.scalar_type() == ScalarType::Float) {
    // max_pool2d's rule: of one image without batch, the result is contiguous.
    const bool channels_last = input.dim() == 4 && conv_channels_last(input, weight);
    const std::array<int64_t, 4> size = {conv.N, conv.K, pool.P, pool.Q};
    Tensor output = empty(input, size, input.dim(), channels_last);
    Tensor code = return_code ? empty(input, size, input.dim(), channels_last, ScalarType::Byte)
                              : empty_vector(input, 0, ScalarType::Byte);
    const std::optional<Tensor> dense_bias = dense(bias);
    if (fused_forward(guard.device(), conv, pool, view_of<const float>(input), view_of<const float>(weight),
                      bias_data<float>(dense_bias), view_of<float>(output),
                      return_code ? view_of<uint8_t>(code) : View<uint8_t>{}))
      return {output, code};
  }
  const Tensor map = conv2d_forward_as<Device>(input, weight, bias, conv_options, Activation::none);
  return max_pool2d_forward_as<uint8_t, Device>(map, pool, return_code, /*relu=*/true);
}

template <class Device>
std::tuple<Tensor, Tensor> fused_forward_op(const Tensor& input, const Tensor& weight,
                                            const std::optional<Tensor>& bias, const IntList& options,
                                            bool return_code) {
  check_options(kFused, options, kFusedOptions);
  return fused_forward_as<Device>(input, weight, bias, conv2d_options(options), fused_pool_options(options),
                                  return_code);
}

template <class Device>
std::tuple<Tensor, Tensor> fused_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                    const IntList& stride, const IntList& padding, const IntList& dilation,
                                    int64_t groups, const IntList& pool_kernel_size, const IntList& pool_stride,
                                    const IntList& pool_padding, const IntList& pool_dilation, bool ceil_mode,
                                    bool allow_tf32) {
  return fused_forward_as<Device>(input, weight, bias, {stride, padding, dilation, groups, allow_tf32},
                                  {pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode},
                                  /*return_code=*/true);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> fused_backward_op(const Tensor& grad_output, const Tensor& code, const Tensor& input,
                                                     const Tensor& weight, const IntList& options,
                                                     const std::vector<bool>& output_mask) {
  check_options(kFusedBackward, options, kFusedOptions);
  const Conv2dOptions conv_options = conv2d_options(options);
  const Conv2dShape conv = conv2d_shape(kFusedBackward, input, weight, std::nullopt, conv_options);
  const Pool2dShape pool = fused_pool_shape(conv, fused_pool_options(options));
  check_grad_output(kFusedBackward, grad_output, input, {conv.N, conv.K, pool.P, pool.Q});
  CNNFAST_CHECK(code.scalar_type() == ScalarType::Byte, kFusedBackward,
                ": code must have dtype uint8, but got code.dtype=", code.scalar_type());
  CNNFAST_CHECK(same_size(code, grad_output), kFusedBackward,
                ": code must have the shape of grad_output, but got code.shape=", show_size(code),
                ", grad_output.shape=", show_size(grad_output));
  check_device(kFusedBackward, "code", code, "grad_output", grad_output);
  check_output_mask(kFusedBackward, output_mask);

  const Guard<Device> guard(input);
  if (input.scalar_type() != ScalarType::Float || !takes_pool_sparse(guard.device(), conv, pool, output_mask[0])) {
    const Tensor grad_map =
        max_pool2d_backward_as<uint8_t, Device>(grad_output, code, pool, suggests_channels_last(code));
    return conv2d_backward_as<Device>("conv2d_backward", grad_map, nullptr, input, weight, conv_options, output_mask);
  }
  const bool channels_last = conv_channels_last(input, weight);
  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = empty(input, {conv.N, conv.C, conv.H, conv.W}, input.dim(), channels_last);
  if (output_mask[1]) grad_weight = empty(weight, {conv.K, conv.C, conv.R, conv.S}, 4, channels_last);
  if (output_mask[2]) grad_bias = empty_vector(weight, conv.K);
  pool_sparse_backward(guard.device(), conv, pool, view_of<const float>(grad_output), view_of<const uint8_t>(code),
                       view_of<const float>(input), view_of<const float>(weight),
                       output_mask[0] ? view_of<float>(grad_input) : View<float>{},
                       output_mask[1] ? view_of<float>(grad_weight) : View<float>{},
                       output_mask[2] ? data_of<float>(grad_bias) : nullptr);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace cnnfast
