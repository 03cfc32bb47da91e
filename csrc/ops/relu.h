// relu_forward and relu_backward of every device.
#pragma once

#include "checks.h"
#include "ops/device.h"

namespace cnnfast {

// Whether elements of the same index lie at the same place in both. (Dimensions of one element have no say.)
inline bool same_layout(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d)
    same = a.size(d) == b.size(d) && (a.size(d) == 1 || a.stride(d) == b.stride(d));
  return same;
}

// `tensor`, or a copy of it, in the layout of `like`.
inline Tensor in_layout_of(const Tensor& like, const Tensor& tensor) {
  if (same_layout(tensor, like)) return tensor;
  Tensor copy = on_huge_pages(torch::stable::empty_like(like));
  torch::stable::copy_(copy, tensor);
  return copy;
}

template <class Device>
Tensor relu_forward_op(const Tensor& input_any) {
  const Guard<Device> guard(input_any);
  // Dense, and in the order of the input's strides: as torch's.
  Tensor output = on_huge_pages(torch::stable::empty_like(input_any));
  const Tensor input = in_layout_of(output, input_any);
  dispatch_dtype("relu", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    relu_forward(guard.device(), data_of<const T>(input), data_of<T>(output), input.numel());
  });
  return output;
}

// grad_output, zero wherever `output`, ReLU's result, is not positive; in output's layout.
template <class Device>
Tensor relu_backward_op(const Tensor& grad_output_any, const Tensor& output_any) {
  check_same("relu_backward", "grad_output", grad_output_any, "output", output_any);
  CNNFAST_CHECK(same_size(grad_output_any, output_any),
                "relu_backward: grad_output must have the shape of output, but got grad_output.shape=",
                show_size(grad_output_any), ", output.shape=", show_size(output_any));
  const Guard<Device> guard(output_any);
  Tensor grad_input = on_huge_pages(torch::stable::empty_like(output_any));
  const Tensor output = in_layout_of(grad_input, output_any);
  const Tensor grad_output = in_layout_of(grad_input, grad_output_any);
  dispatch_dtype("relu_backward", output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    relu_backward(guard.device(), data_of<const T>(grad_output), data_of<const T>(output), data_of<T>(grad_input),
                  output.numel());
  });
  return grad_input;
}

}  // namespace cnnfast
