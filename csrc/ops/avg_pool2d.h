// avg_pool2d_forward and avg_pool2d_backward of every device.
#pragma once

#include <optional>

#include "checks.h"
#include "common/avg_pool2d.h"
#include "ops/device.h"
#include "ops/pool2d.h"

namespace cnnfast {

constexpr int64_t kUndilated[] = {1, 1};

inline AvgPool2dDivisor divisor_of(const char* op, bool count_include_pad, std::optional<int64_t> divisor_override) {
  CNNFAST_CHECK(divisor_override != 0, op, ": divisor must be not zero, but got divisor_override=0");
  return {count_include_pad, divisor_override.value_or(0)};
}

template <class Device>
Tensor avg_pool2d_forward_op(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                             const IntList& padding, bool ceil_mode, bool count_include_pad,
                             std::optional<int64_t> divisor_override) {
  const Pool2dShape s = pool2d_shape("avg_pool2d", input, {kernel_size, stride, padding, kUndilated, ceil_mode});
  const AvgPool2dDivisor divisor = divisor_of("avg_pool2d", count_include_pad, divisor_override);
  const Guard<Device> guard(input);
  const bool channels_last = suggests_channels_last(input);
  const Tensor output = empty(input, {s.N, s.C, s.P, s.Q}, input.dim(), channels_last);
  dispatch_dtype("avg_pool2d", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    avg_pool2d_forward(guard.device(),
                       AvgPool2dForward<T>{s, divisor, channels_last, view_of<const T>(input), view_of<T>(output)});
  });
  return output;
}

template <class Device>
Tensor avg_pool2d_backward_op(const Tensor& grad_output_any, const IntList& input_size, bool channels_last,
                              const IntList& kernel_size, const IntList& stride, const IntList& padding, bool ceil_mode,
                              bool count_include_pad, std::optional<int64_t> divisor_override) {
  constexpr const char* kOp = "avg_pool2d_backward";
  check_list(kOp, "input_size", input_size, 2, 1);
  check_image(kOp, "grad_output", grad_output_any);
  const Guard<Device> guard(grad_output_any);
  const Tensor grad_output = with_adjacent_elements(grad_output_any, channels_last);
  const Pool2dShape s = pool2d_shape(kOp, batch_of(grad_output), size_from_end(grad_output, 3), input_size[0],
                                     input_size[1], {kernel_size, stride, padding, kUndilated, ceil_mode});
  CNNFAST_CHECK(size_from_end(grad_output, 2) == s.P && size_from_end(grad_output, 1) == s.Q, kOp,
                ": grad_output must end in the output size (", s.P, " x ", s.Q,
                "), but got grad_output.shape=", show_size(grad_output));
  const AvgPool2dDivisor divisor = divisor_of(kOp, count_include_pad, divisor_override);
  const Tensor grad_input = empty(grad_output, {s.N, s.C, s.H, s.W}, grad_output.dim(), channels_last);
  dispatch_dtype(kOp, grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    avg_pool2d_backward(guard.device(), AvgPool2dBackward<T>{s, divisor, channels_last, view_of<const T>(grad_output),
                                                             view_of<T>(grad_input)});
  });
  return grad_input;
}

}  // namespace cnnfast
