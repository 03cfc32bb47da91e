// max_pool2d_forward and max_pool2d_backward of every device, and the pooling after ReLU for ops that fuse it.
#pragma once

#include <tuple>

#include "checks.h"
#include "common/max_pool2d.h"
#include "ops/device.h"
#include "ops/pool2d.h"

namespace cnnfast {

template <class Stored>
constexpr ScalarType kStoredType = sizeof(Stored) == 1 ? ScalarType::Byte : ScalarType::Long;

// `Stored` says what is kept of a winner: see common/max_pool2d.h.
template <class Stored, class Device>
std::tuple<Tensor, Tensor> max_pool2d_forward_as(const Tensor& input, const Pool2dShape& s, bool return_winner,
                                                 bool relu = false) {
  const Guard<Device> guard(input);
  const bool channels_last = suggests_channels_last(input);
  const Tensor output = empty(input, {s.N, s.C, s.P, s.Q}, input.dim(), channels_last);
  const Tensor winner = return_winner
                            ? empty(input, {s.N, s.C, s.P, s.Q}, input.dim(), channels_last, kStoredType<Stored>)
                            : empty_vector(input, 0, kStoredType<Stored>);
  dispatch_dtype("max_pool2d", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    MaxPool2dForward<T, Stored> args{s, relu, channels_last, view_of<const T>(input), view_of<T>(output), {}};
    if (return_winner) args.winner = view_of<Stored>(winner);
    max_pool2d_forward(guard.device(), args);
  });
  return {output, winner};
}

template <class Stored, class Device>
Tensor max_pool2d_backward_as(const Tensor& grad_output_any, const Tensor& winner, const Pool2dShape& s,
                              bool channels_last) {
  const Guard<Device> guard(grad_output_any);
  const Tensor grad_output = with_adjacent_elements(grad_output_any, channels_last);
  const Tensor grad_input = empty(grad_output, {s.N, s.C, s.H, s.W}, grad_output.dim(), channels_last);
  dispatch_dtype("max_pool2d_backward", grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    max_pool2d_backward(guard.device(),
                        MaxPool2dBackward<T, Stored>{s, channels_last, view_of<const T>(grad_output),
                                                     view_of<const Stored>(winner), view_of<T>(grad_input)});
  });
  return grad_input;
}

// Whether codes are what is kept of the winners.
inline bool keeps_codes(const char* op, int64_t winner_bytes, const Pool2dShape& s) {
  CNNFAST_CHECK(winner_bytes == 0 || winner_bytes == 1 || winner_bytes == 8, op,
                ": winner_bytes must be 0, 1 or 8, but got winner_bytes=", winner_bytes);
  CNNFAST_CHECK(winner_bytes != 1 || s.R * s.S <= kMaxCodedWindow, op, ": a window with codes must have at most ",
                kMaxCodedWindow, " elements, but got kernel_size=[", s.R, ", ", s.S, "]");
  return winner_bytes == 1;
}

template <class Device>
std::tuple<Tensor, Tensor> max_pool2d_keeping(int64_t winner_bytes, const Tensor& input,
                                              const MaxPool2dOptions& options) {
  const Pool2dShape s = pool2d_shape("max_pool2d", input, options);
  if (keeps_codes("max_pool2d", winner_bytes, s)) return max_pool2d_forward_as<uint8_t, Device>(input, s, true);
  return max_pool2d_forward_as<int64_t, Device>(input, s, winner_bytes != 0);
}

template <class Device>
std::tuple<Tensor, Tensor> max_pool2d_forward_op(const Tensor& input, const IntList& options, int64_t winner_bytes) {
  check_options("max_pool2d_forward", options, MaxPool2dOptions::kCount);
  return max_pool2d_keeping<Device>(winner_bytes, input, max_pool2d_options(options));
}

// The public ops: kWinnerBytes is 8 for indices, 1 for codes.
template <class Device, int64_t kWinnerBytes>
std::tuple<Tensor, Tensor> max_pool2d_op(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                                         const IntList& padding, const IntList& dilation, bool ceil_mode) {
  return max_pool2d_keeping<Device>(kWinnerBytes, input, {kernel_size, stride, padding, dilation, ceil_mode});
}

template <class Device>
Tensor max_pool2d_backward_op(const Tensor& grad_output, const Tensor& winner, const IntList& input_size,
                              const IntList& options) {
  constexpr const char* kOp = "max_pool2d_backward";
  check_options(kOp, options, MaxPool2dOptions::kCount);
  check_list(kOp, "input_size", input_size, 2, 1);
  check_image(kOp, "grad_output", grad_output);
  const bool codes = winner.scalar_type() == ScalarType::Byte;
  CNNFAST_CHECK(codes || winner.scalar_type() == ScalarType::Long, kOp,
                ": winner must have dtype uint8 or int64, but got winner.dtype=", winner.scalar_type());
  CNNFAST_CHECK(same_size(winner, grad_output), kOp,
                ": winner must have the shape of grad_output, but got winner.shape=", show_size(winner),
                ", grad_output.shape=", show_size(grad_output));
  check_device(kOp, "winner", winner, "grad_output", grad_output);
  const Pool2dShape s = pool2d_shape(kOp, batch_of(grad_output), size_from_end(grad_output, 3), input_size[0],
                                     input_size[1], max_pool2d_options(options));
  CNNFAST_CHECK(size_from_end(grad_output, 2) == s.P && size_from_end(grad_output, 1) == s.Q, kOp,
                ": grad_output must end in the output size (", s.P, " x ", s.Q,
                "), but got grad_output.shape=", show_size(grad_output));
  const bool channels_last = suggests_channels_last(winner);
  if (keeps_codes(kOp, codes ? 1 : 8, s))
    return max_pool2d_backward_as<uint8_t, Device>(grad_output, winner, s, channels_last);
  return max_pool2d_backward_as<int64_t, Device>(grad_output, winner, s, channels_last);
}

}  // namespace cnnfast
