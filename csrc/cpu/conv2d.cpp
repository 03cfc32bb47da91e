// conv2d_forward and conv2d_backward on the CPU.
#include <type_traits>

#include "cpu/conv2d_launch.h"
#include "cpu/direct_conv2d.h"
#include "cpu/implicit_gemm.h"
#include "cpu/relu_launch.h"

namespace cnnfast {

Tensor conv2d_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                      const Conv2dOptions& options, bool relu) {
  const char* op = relu ? "conv2d_relu" : "conv2d";
  const Conv2dShape s = conv2d_shape(op, input, weight, bias, options);
  const Tensor output = empty(input, {s.N, s.K, s.P, s.Q}, input.dim(), conv_channels_last(input, weight));
  const Tensor dense_bias = bias.has_value() ? torch::stable::contiguous(*bias) : Tensor();
  dispatch_dtype(op, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto x = view_of<const T>(input), w = view_of<const T>(weight);
    const T* b = bias.has_value() ? data_of<const T>(dense_bias) : nullptr;
    if constexpr (std::is_same_v<T, float>) {
      if (direct_conv2d_forward(s, x, w, b, relu, view_of<T>(output))) return;
    }
    implicit_gemm_forward<T>(s, x, w, b, relu, view_of<T>(output));
  });
  return output;
}

namespace {

std::tuple<Tensor, Tensor, Tensor> backward(const char* op, const Tensor& grad_output, const Tensor* output,
                                            const Tensor& input, const Tensor& weight, const Conv2dOptions& options,
                                            const std::vector<bool>& output_mask) {
  const Conv2dShape s = conv2d_shape(op, input, weight, std::nullopt, options);
  check_grad_output(op, grad_output, input, {s.N, s.K, s.P, s.Q});
  check_output_mask(op, output_mask);
  const bool channels_last = conv_channels_last(input, weight);
  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = empty(input, {s.N, s.C, s.H, s.W}, input.dim(), channels_last);
  if (output_mask[1]) grad_weight = empty(input, {s.K, s.C / s.G, s.R, s.S}, 4, channels_last);
  if (output_mask[2]) grad_bias = empty_vector(input, s.K);
  dispatch_dtype(op, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto x = view_of<const T>(input), w = view_of<const T>(weight);
    const auto dx = output_mask[0] ? view_of<T>(grad_input) : View<T>{};
    const auto dw = output_mask[1] ? view_of<T>(grad_weight) : View<T>{};
    T* db = output_mask[2] ? data_of<T>(grad_bias) : nullptr;
    if constexpr (std::is_same_v<T, float>) {
      const auto y = output != nullptr ? view_of<const T>(*output) : View<const T>{};
      if (direct_conv2d_backward(s, view_of<const T>(grad_output), y, x, w, dx, dw, db)) return;
    }
    const Tensor clipped = output != nullptr ? relu_backward(grad_output, *output) : grad_output;
    const auto dy = view_of<const T>(clipped);
    if (output_mask[0]) implicit_gemm_backward_input<T>(s, dy, w, nullptr, dx);
    if (output_mask[1]) implicit_gemm_backward_weight<T>(s, x, dy, dw);
    if (output_mask[2]) sum_over_pixels<T>(s.N, s.K, s.P, s.Q, dy, db);
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   const Conv2dOptions& options, const std::vector<bool>& output_mask) {
  return backward("conv2d_backward", grad_output, nullptr, input, weight, options, output_mask);
}

namespace {

Tensor raw_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const IntList& options,
                   bool relu) {
  check_options(relu ? "conv2d_relu" : "conv2d", options, Conv2dOptions::kCount);
  return conv2d_forward(input, weight, bias, conv2d_options(options), relu);
}

std::tuple<Tensor, Tensor, Tensor> raw_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                const IntList& options, const std::vector<bool>& output_mask) {
  check_options("conv2d_backward", options, Conv2dOptions::kCount);
  return conv2d_backward(grad_output, input, weight, conv2d_options(options), output_mask);
}

std::tuple<Tensor, Tensor, Tensor> relu_raw_backward(const Tensor& grad_output, const Tensor& output,
                                                     const Tensor& input, const Tensor& weight, const IntList& options,
                                                     const std::vector<bool>& output_mask) {
  const char* op = "conv2d_relu_backward";
  check_options(op, options, Conv2dOptions::kCount);
  check_same(op, "output", output, "input", input);
  CNNFAST_CHECK(same_size(output, grad_output), op,
                ": output must have the shape of grad_output, but got output.shape=", show_size(output),
                ", grad_output.shape=", show_size(grad_output));
  return backward(op, grad_output, &output, input, weight, conv2d_options(options), output_mask);
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const IntList& stride,
              const IntList& padding, const IntList& dilation, int64_t groups) {
  return conv2d_forward(input, weight, bias, {stride, padding, dilation, groups}, false);
}

Tensor conv2d_relu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const IntList& stride,
                   const IntList& padding, const IntList& dilation, int64_t groups) {
  return conv2d_forward(input, weight, bias, {stride, padding, dilation, groups}, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv2d_forward", TORCH_BOX(&raw_forward));
  m.impl("conv2d_backward", TORCH_BOX(&raw_backward));
  m.impl("conv2d_relu_backward", TORCH_BOX(&relu_raw_backward));
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_relu", TORCH_BOX(&conv2d_relu));
}

}  // namespace cnnfast
