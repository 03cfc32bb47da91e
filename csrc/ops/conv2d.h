// conv2d, with and without ReLU, forward and backward, of every device.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "common/activation.h"
#include "ops/device.h"
#include "ops/relu.h"
#include "ops/widened.h"

namespace cnnfast {

// Whether torch would give results of a convolution with these operands, gradients included, in channels_last.
inline bool conv_channels_last(const Tensor& input, const Tensor& weight) {
  return suggests_channels_last(input) || suggests_channels_last(weight);
}

template <class T>
const T* bias_data(const std::optional<Tensor>& dense_bias) {
  return dense_bias.has_value() ? data_of<const T>(*dense_bias) : nullptr;
}
// A bias may be a vector of any stride. (Nearly all are dense, and calling torch to be told so costs a microsecond.)
inline std::optional<Tensor> dense(const std::optional<Tensor>& bias) {
  return !bias.has_value() || bias->stride(0) == 1 ? bias : std::optional(torch::stable::contiguous(*bias));
}

// A residual as its kernels read it: laid out as the output.
inline std::optional<Tensor> residual_for(const char* op, const std::optional<Tensor>& residual, const Tensor& output) {
  if (!residual.has_value()) return residual;
  CNNFAST_CHECK(same_size(*residual, output), op,
                ": residual must have the shape of the output, but got residual.shape=", show_size(*residual),
                ", output.shape=", show_size(output));
  return in_layout_of(output, *residual);
}
template <class T>
Epilogue<T> epilogue_of(Activation activation, const std::optional<Tensor>& residual) {
  return {activation, residual.has_value() ? data_of<const T>(*residual) : nullptr};
}

template <class Device>
Tensor conv2d_forward_as(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Conv2dOptions& options, Activation activation,
                         const std::optional<Tensor>& residual = std::nullopt) {
  const char* op = activation == Activation::relu ? "conv2d_relu" : "conv2d";
  const Conv2dShape s = conv2d_shape(op, input, weight, bias, options);
  if (residual.has_value()) check_same(op, "residual", *residual, "input", input);
  if (is_widened<Device>(input, s)) {
    return narrowed(conv2d_forward_as<Device>(widened(input), widened(weight), widened(bias), options, activation,
                                              widened(residual)),
                    input.scalar_type());
  }
  const Guard<Device> guard(input, options.allow_tf32);
  const Tensor output = empty(input, {s.N, s.K, s.P, s.Q}, input.dim(), conv_channels_last(input, weight));
  const std::optional<Tensor> dense_bias = dense(bias), added = residual_for(op, residual, output);
  dispatch_dtype(op, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    conv2d_forward(guard.device(), s, view_of<const T>(input), view_of<const T>(weight), bias_data<T>(dense_bias),
                   epilogue_of<T>(activation, added), view_of<T>(output));
  });
  return output;
}

// `output` is that of conv2d_relu, whose grad_output this is; null without ReLU.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> conv2d_backward_as(const char* op, const Tensor& grad_output, const Tensor* output,
                                                      const Tensor& input, const Tensor& weight,
                                                      const Conv2dOptions& options,
                                                      const std::vector<bool>& output_mask) {
  const Conv2dShape s = conv2d_shape(op, input, weight, std::nullopt, options);
  check_grad_output(op, grad_output, input, {s.N, s.K, s.P, s.Q});
  check_output_mask(op, output_mask);
  if (is_widened<Device>(input, s)) {
    const std::optional<Tensor> wide = output != nullptr ? std::optional(widened(*output)) : std::nullopt;
    return narrowed(conv2d_backward_as<Device>(op, widened(grad_output), wide.has_value() ? &*wide : nullptr,
                                               widened(input), widened(weight), options, output_mask),
                    input.scalar_type());
  }
  const Guard<Device> guard(input, options.allow_tf32);
  const bool channels_last = conv_channels_last(input, weight);
  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = empty(input, {s.N, s.C, s.H, s.W}, input.dim(), channels_last);
  if (output_mask[1]) grad_weight = empty(input, {s.K, s.C / s.G, s.R, s.S}, 4, channels_last);
  if (output_mask[2]) grad_bias = empty_vector(input, s.K);
  dispatch_dtype(op, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto x = view_of<const T>(input), w = view_of<const T>(weight), dy = view_of<const T>(grad_output);
    const auto y = output != nullptr ? view_of<const T>(*output) : View<const T>{};
    const auto dx = output_mask[0] ? view_of<T>(grad_input) : View<T>{};
    const auto dw = output_mask[1] ? view_of<T>(grad_weight) : View<T>{};
    T* db = output_mask[2] ? data_of<T>(grad_bias) : nullptr;
    if (conv2d_relu_backward(guard.device(), s, dy, y, x, w, dx, dw, db)) return;
    const Tensor clipped = output != nullptr ? relu_backward_op<Device>(grad_output, *output) : grad_output;
    const auto g = view_of<const T>(clipped);
    if (output_mask[0]) conv2d_backward_input(guard.device(), s, g, w, static_cast<const T*>(nullptr), dx);
    if (output_mask[1]) conv2d_backward_weight(guard.device(), s, x, g, dw);
    if (output_mask[2]) sum_over_pixels(guard.device(), s.N, s.K, s.P, s.Q, g, db);
  });
  return {grad_input, grad_weight, grad_bias};
}

template <class Device>
void check_epilogue(const char* op, int64_t activation, const std::optional<Tensor>& residual) {
  CNNFAST_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Device::kLastActivation), op,
                ": activation must be 0 for none, 1 for ReLU or, on the CPU, 2 for ReLU6, 3 for SiLU or 4 for "
                "Hardswish, but got activation=",
                activation);
  CNNFAST_CHECK(Device::kAddsResidual || !residual.has_value(), op,
                ": residual must be None but on the CPU, but got a tensor");
}

template <class Device>
Tensor conv2d_forward_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const IntList& options, int64_t activation, const std::optional<Tensor>& residual) {
  constexpr const char* kOp = "conv2d_forward";
  check_options(kOp, options, Conv2dOptions::kCount + 1);
  check_epilogue<Device>(kOp, activation, residual);
  return conv2d_forward_as<Device>(input, weight, bias, conv2d_options(options), static_cast<Activation>(activation),
                                   residual);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> conv2d_backward_op(const Tensor& grad_output, const Tensor& input,
                                                      const Tensor& weight, const IntList& options,
                                                      const std::vector<bool>& output_mask) {
  constexpr const char* kOp = "conv2d_backward";
  check_options(kOp, options, Conv2dOptions::kCount + 1);
  return conv2d_backward_as<Device>(kOp, grad_output, nullptr, input, weight, conv2d_options(options), output_mask);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> conv2d_relu_backward_op(const Tensor& grad_output, const Tensor& output,
                                                           const Tensor& input, const Tensor& weight,
                                                           const IntList& options,
                                                           const std::vector<bool>& output_mask) {
  constexpr const char* kOp = "conv2d_relu_backward";
  check_options(kOp, options, Conv2dOptions::kCount + 1);
  check_same(kOp, "output", output, "input", input);
  CNNFAST_CHECK(same_size(output, grad_output), kOp,
                ": output must have the shape of grad_output, but got output.shape=", show_size(output),
                ", grad_output.shape=", show_size(grad_output));
  return conv2d_backward_as<Device>(kOp, grad_output, &output, input, weight, conv2d_options(options), output_mask);
}

template <class Device, bool kRelu>
Tensor conv2d_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const IntList& stride,
                 const IntList& padding, const IntList& dilation, int64_t groups, bool allow_tf32) {
  return conv2d_forward_as<Device>(input, weight, bias, {stride, padding, dilation, groups, allow_tf32},
                                   kRelu ? Activation::relu : Activation::none);
}

}  // namespace cnnfast
