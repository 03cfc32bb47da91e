// max_pool2d_forward and max_pool2d_backward of every device, and the pooling after ReLU for ops that fuse it.
#pragma once

#include <tuple>

#include "checks.h"
#include "common/max_pool2d.h"
#include "ops/device.h"

namespace cnnfast {

template <class Stored>
constexpr ScalarType kStoredType = sizeof(Stored) == 1 ? ScalarType::Byte : ScalarType::Long;

// `Stored` says what is kept of a winner, and whether ReLU comes before: see common/max_pool2d.h.
template <class Stored, class Device>
std::tuple<Tensor, Tensor> max_pool2d_forward_as(const Tensor& input, const Pool2dShape& s, bool return_winner) {
  const Guard<Device> guard(input);
  const bool channels_last = suggests_channels_last(input);
  const Tensor output = empty(input, {s.N, s.C, s.P, s.Q}, input.dim(), channels_last);
  const Tensor winner = return_winner
                            ? empty(input, {s.N, s.C, s.P, s.Q}, input.dim(), channels_last, kStoredType<Stored>)
                            : empty_vector(input, 0, kStoredType<Stored>);
  dispatch_dtype("max_pool2d", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    MaxPool2dForward<T, Stored> args{s, channels_last, view_of<const T>(input), view_of<T>(output), {}};
    if (return_winner) args.winner = view_of<Stored>(winner);
    max_pool2d_forward(guard.device(), args);
  });
  return {output, winner};
}

template <class Stored, class Device>
Tensor max_pool2d_backward_as(const Tensor& grad_output, const Tensor& winner, const Pool2dShape& s,
                              bool channels_last) {
  const Guard<Device> guard(grad_output);
  const Tensor grad_input = empty(grad_output, {s.N, s.C, s.H, s.W}, grad_output.dim(), channels_last);
  dispatch_dtype("max_pool2d_backward", grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    max_pool2d_backward(guard.device(),
                        MaxPool2dBackward<T, Stored>{s, channels_last, view_of<const T>(grad_output),
                                                     view_of<const Stored>(winner), view_of<T>(grad_input)});
  });
  return grad_input;
}

template <class Device>
std::tuple<Tensor, Tensor> max_pool2d_forward_op(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                                                 const IntList& padding, const IntList& dilation, bool ceil_mode,
                                                 bool return_indices) {
  const Pool2dShape s = pool2d_shape("max_pool2d", input, {kernel_size, stride, padding, dilation, ceil_mode});
  return max_pool2d_forward_as<int64_t, Device>(input, s, return_indices);
}

template <class Device>
std::tuple<Tensor, Tensor> max_pool2d_op(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                                         const IntList& padding, const IntList& dilation, bool ceil_mode) {
  return max_pool2d_forward_op<Device>(input, kernel_size, stride, padding, dilation, ceil_mode, true);
}

template <class Device>
Tensor max_pool2d_backward_op(const Tensor& grad_output, const Tensor& indices, const IntList& input_size,
                              const IntList& options) {
  constexpr const char* kOp = "max_pool2d_backward";
  check_options(kOp, options, MaxPool2dOptions::kCount);
  check_list(kOp, "input_size", input_size, 2, 1);
  check_image(kOp, "grad_output", grad_output);
  CNNFAST_CHECK(indices.scalar_type() == ScalarType::Long, kOp,
                ": indices must have dtype int64, but got indices.dtype=", indices.scalar_type());
  CNNFAST_CHECK(same_size(indices, grad_output), kOp,
                ": indices must have the shape of grad_output, but got indices.shape=", show_size(indices),
                ", grad_output.shape=", show_size(grad_output));
  check_device(kOp, "indices", indices, "grad_output", grad_output);
  const Pool2dShape s = pool2d_shape(kOp, batch_of(grad_output), size_from_end(grad_output, 3), input_size[0],
                                     input_size[1], max_pool2d_options(options));
  CNNFAST_CHECK(size_from_end(grad_output, 2) == s.P && size_from_end(grad_output, 1) == s.Q, kOp,
                ": grad_output must end in the output size (", s.P, " x ", s.Q,
                "), but got grad_output.shape=", show_size(grad_output));
  return max_pool2d_backward_as<int64_t, Device>(grad_output, indices, s, suggests_channels_last(indices));
}

}  // namespace cnnfast
