// conv_transpose2d_forward and conv_transpose2d_backward of every device: the convolution whose input gradient this is,
// with the roles of input and output exchanged.
#pragma once

#include "ops/conv2d.h"

namespace cnnfast {

template <class Device>
Tensor conv_transpose2d_forward_as(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                   const ConvTranspose2dOptions& options) {
  const char* op = "conv_transpose2d";
  const Conv2dShape s = conv_transpose2d_shape(op, input, weight, bias, options);
  if (is_widened<Device>(input, s)) {
    return narrowed(conv_transpose2d_forward_as<Device>(widened(input), widened(weight), widened(bias), options),
                    input.scalar_type());
  }
  const Guard<Device> guard(input, options.allow_tf32);
  const Tensor output = empty(input, {s.N, s.C, s.H, s.W}, input.dim(), conv_channels_last(input, weight));
  const std::optional<Tensor> dense_bias = dense(bias);
  dispatch_dtype(op, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    conv2d_backward_input(guard.device(), s, view_of<const T>(input), view_of<const T>(weight),
                          bias_data<T>(dense_bias), view_of<T>(output));
  });
  return output;
}

template <class Device>
Tensor conv_transpose2d_forward_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                   const IntList& options) {
  check_options("conv_transpose2d", options, ConvTranspose2dOptions::kCount + 1);
  return conv_transpose2d_forward_as<Device>(input, weight, bias, conv_transpose2d_options(options));
}

template <class Device>
Tensor conv_transpose2d_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                           const IntList& stride, const IntList& padding, const IntList& output_padding, int64_t groups,
                           const IntList& dilation, bool allow_tf32) {
  return conv_transpose2d_forward_as<Device>(input, weight, bias,
                                             {stride, padding, output_padding, groups, dilation, allow_tf32});
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> conv_transpose2d_backward_op(const Tensor& grad_output, const Tensor& input,
                                                                const Tensor& weight, const IntList& options,
                                                                const std::vector<bool>& output_mask) {
  const char* op = "conv_transpose2d_backward";
  check_options(op, options, ConvTranspose2dOptions::kCount + 1);
  const ConvTranspose2dOptions parsed = conv_transpose2d_options(options);
  const Conv2dShape s = conv_transpose2d_shape(op, input, weight, std::nullopt, parsed);
  check_grad_output(op, grad_output, input, {s.N, s.C, s.H, s.W});
  check_output_mask(op, output_mask);
  if (is_widened<Device>(input, s)) {
    return narrowed(conv_transpose2d_backward_op<Device>(widened(grad_output), widened(input), widened(weight), options,
                                                         output_mask),
                    input.scalar_type());
  }
  const Guard<Device> guard(input, parsed.allow_tf32);
  const bool channels_last = conv_channels_last(input, weight);
  Tensor grad_input, grad_weight, grad_bias;
  dispatch_dtype(op, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto dy = view_of<const T>(grad_output), x = view_of<const T>(input), w = view_of<const T>(weight);
    if (output_mask[0]) {
      grad_input = empty(input, {s.N, s.K, s.P, s.Q}, input.dim(), channels_last);
      conv2d_forward(guard.device(), s, dy, w, static_cast<const T*>(nullptr), Epilogue<T>(Activation::none),
                     view_of<T>(grad_input));
    }
    if (output_mask[1]) {
      grad_weight = empty(input, {s.K, s.C / s.G, s.R, s.S}, 4, channels_last);
      conv2d_backward_weight(guard.device(), s, dy, x, view_of<T>(grad_weight));
    }
    if (output_mask[2]) {
      grad_bias = empty_vector(input, s.C);
      sum_over_pixels(guard.device(), s.N, s.C, s.H, s.W, dy, data_of<T>(grad_bias));
    }
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace cnnfast
