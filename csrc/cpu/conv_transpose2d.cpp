// conv_transpose2d_forward and conv_transpose2d_backward on the CPU: the convolution whose input gradient this is, with
// the roles of input and output exchanged.
#include "cpu/conv2d_launch.h"
#include "cpu/implicit_gemm.h"

namespace cnnfast {
namespace {

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const ConvTranspose2dOptions& options) {
  const char* op = "conv_transpose2d";
  const Conv2dShape s = conv_transpose2d_shape(op, input, weight, bias, options);
  const Tensor output = empty(input, {s.N, s.C, s.H, s.W}, input.dim(), conv_channels_last(input, weight));
  const Tensor dense_bias = bias.has_value() ? torch::stable::contiguous(*bias) : Tensor();
  dispatch_dtype(op, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    implicit_gemm_backward_input<T>(s, view_of<const T>(input), view_of<const T>(weight),
                                    bias.has_value() ? data_of<const T>(dense_bias) : nullptr, view_of<T>(output));
  });
  return output;
}

Tensor conv_transpose2d_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                const IntList& options) {
  check_options("conv_transpose2d", options, ConvTranspose2dOptions::kCount);
  return forward(input, weight, bias, conv_transpose2d_options(options));
}

Tensor conv_transpose2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const IntList& stride, const IntList& padding, const IntList& output_padding, int64_t groups,
                        const IntList& dilation) {
  return forward(input, weight, bias, {stride, padding, output_padding, groups, dilation});
}

std::tuple<Tensor, Tensor, Tensor> conv_transpose2d_backward(const Tensor& grad_output, const Tensor& input,
                                                             const Tensor& weight, const IntList& options,
                                                             const std::vector<bool>& output_mask) {
  const char* op = "conv_transpose2d_backward";
  check_options(op, options, ConvTranspose2dOptions::kCount);
  const Conv2dShape s = conv_transpose2d_shape(op, input, weight, std::nullopt, conv_transpose2d_options(options));
  check_grad_output(op, grad_output, input, {s.N, s.C, s.H, s.W});
  check_output_mask(op, output_mask);
  const bool channels_last = conv_channels_last(input, weight);
  Tensor grad_input, grad_weight, grad_bias;
  dispatch_dtype(op, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto dy = view_of<const T>(grad_output);
    if (output_mask[0]) {
      grad_input = empty(input, {s.N, s.K, s.P, s.Q}, input.dim(), channels_last);
      implicit_gemm_forward<T>(s, dy, view_of<const T>(weight), nullptr, false, view_of<T>(grad_input));
    }
    if (output_mask[1]) {
      grad_weight = empty(input, {s.K, s.C / s.G, s.R, s.S}, 4, channels_last);
      implicit_gemm_backward_weight<T>(s, dy, view_of<const T>(input), view_of<T>(grad_weight));
    }
    if (output_mask[2]) {
      grad_bias = empty_vector(input, s.C);
      sum_over_pixels<T>(s.N, s.C, s.H, s.W, dy, data_of<T>(grad_bias));
    }
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv_transpose2d_forward", TORCH_BOX(&conv_transpose2d_forward));
  m.impl("conv_transpose2d", TORCH_BOX(&conv_transpose2d));
  m.impl("conv_transpose2d_backward", TORCH_BOX(&conv_transpose2d_backward));
}

}  // namespace cnnfast
