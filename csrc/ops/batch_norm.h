// batch_norm_forward and batch_norm_backward of every device that has them.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "common/batch_norm.h"
#include "ops/conv2d.h"

namespace cnnfast {

inline void check_per_channel(const char* op, const char* name, const std::optional<Tensor>& vector,
                              const Tensor& input, ScalarType dtype) {
  if (!vector.has_value()) return;
  CNNFAST_CHECK(vector->dim() == 1 && vector->size(0) == input.size(1), op, ": ", name, " must have shape [C] = [",
                input.size(1), "], but got ", name, ".shape=", show_size(*vector));
  CNNFAST_CHECK(vector->scalar_type() == dtype, op, ": ", name, " must have dtype ", dtype, " for an input of ",
                input.scalar_type(), ", but got ", name, ".dtype=", vector->scalar_type());
  CNNFAST_CHECK(vector->size(0) < 2 || vector->stride(0) == 1, op, ": ", name, " must be contiguous, but got stride ",
                vector->stride(0));
  check_device(op, name, *vector, "input", input);
}

template <class A>
A* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data_of<A>(*tensor) : nullptr;
}

// Returns the type that sums are kept in.
inline ScalarType check_batch_norm(const char* op, const Tensor& input, const std::optional<Tensor>& weight,
                                   int64_t activation) {
  CNNFAST_CHECK(input.dim() == 4, op, ": input must be 4D: [N, C, H, W], but got input.shape=", show_size(input));
  CNNFAST_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::relu6), op,
                ": activation must be none, ReLU or ReLU6 (0, 1, 2), but got activation=", activation);
  const ScalarType dtype = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check_per_channel(op, "weight", weight, input, dtype);
  return dtype;
}

// A dense tensor of the input's size and format.
inline Tensor empty_image_like(const Tensor& input) {
  return empty(input, {input.size(0), input.size(1), input.size(2), input.size(3)}, 4, suggests_channels_last(input));
}
inline BatchNormShape batch_norm_shape(const Tensor& input) {
  return BatchNormShape(input.size(0), input.size(1), input.size(2), input.size(3), suggests_channels_last(input));
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward_op(
    const Tensor& input_any, const std::optional<Tensor>& residual, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var, double momentum, double eps, int64_t activation) {
  constexpr const char* kOp = "batch_norm_forward";
  const ScalarType dtype = check_batch_norm(kOp, input_any, weight, activation);
  check_per_channel(kOp, "bias", bias, input_any, dtype);
  check_per_channel(kOp, "running_mean", running_mean, input_any, dtype);
  check_per_channel(kOp, "running_var", running_var, input_any, dtype);
  const BatchNormShape s = batch_norm_shape(input_any);
  CNNFAST_CHECK(s.count() > 1, kOp,
                ": expected more than 1 value per channel when training, but got input.shape=", show_size(input_any));
  if (residual.has_value()) check_same(kOp, "residual", *residual, "input", input_any);
  const Guard<Device> guard(input_any);
  const Tensor output = empty_image_like(input_any);
  const Tensor input = in_layout_of(output, input_any);
  const std::optional<Tensor> added = residual_for(kOp, residual, output);
  const Tensor mean = empty_vector(input, s.C, dtype), invstd = empty_vector(input, s.C, dtype);
  const Tensor shift = empty_vector(input, s.C, dtype);
  dispatch_dtype(kOp, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Compute<T>;
    batch_norm_forward(
        guard.device(),
        BatchNormForward<T>{s, data_of<const T>(input), data_or_null<const T>(added), data_or_null<const A>(weight),
                            data_or_null<const A>(bias), data_or_null<A>(running_mean), data_or_null<A>(running_var),
                            momentum, eps, static_cast<Activation>(activation), data_of<T>(output), data_of<A>(mean),
                            data_of<A>(invstd), data_of<A>(shift)});
  });
  return {output, mean, invstd, shift};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward_op(
    const Tensor& grad_output_any, const Tensor& input_any, const std::optional<Tensor>& output,
    const std::optional<Tensor>& weight, const Tensor& mean, const Tensor& invstd, const Tensor& shift,
    int64_t activation, const std::vector<bool>& output_mask) {
  constexpr const char* kOp = "batch_norm_backward";
  const ScalarType dtype = check_batch_norm(kOp, input_any, weight, activation);
  check_per_channel(kOp, "mean", mean, input_any, dtype);
  check_per_channel(kOp, "invstd", invstd, input_any, dtype);
  check_per_channel(kOp, "shift", shift, input_any, dtype);
  check_same(kOp, "grad_output", grad_output_any, "input", input_any);
  CNNFAST_CHECK(same_size(grad_output_any, input_any), kOp,
                ": grad_output must have the shape of input, but got grad_output.shape=", show_size(grad_output_any),
                ", input.shape=", show_size(input_any));
  CNNFAST_CHECK(output_mask.size() == 4, kOp, ": output_mask must have 4 values, but got ", output_mask.size());
  if (output.has_value()) {
    check_same(kOp, "output", *output, "input", input_any);
    CNNFAST_CHECK(same_size(*output, input_any), kOp,
                  ": output must have the shape of input, but got output.shape=", show_size(*output),
                  ", input.shape=", show_size(input_any));
  }
  const BatchNormShape s = batch_norm_shape(input_any);
  const Guard<Device> guard(input_any);
  const Tensor dense = empty_image_like(input_any);
  const Tensor input = in_layout_of(dense, input_any), grad_output = in_layout_of(dense, grad_output_any);
  // Without a residual, what was clipped is computed again.
  const bool reads_output = output.has_value() && static_cast<Activation>(activation) != Activation::none;
  const std::optional<Tensor> clipped = reads_output ? std::optional(in_layout_of(dense, *output)) : std::nullopt;
  Tensor grad_input, grad_residual, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = dense;
  if (output_mask[1] && reads_output) grad_residual = empty_image_like(dense);
  if (output_mask[2]) grad_weight = empty_vector(input, s.C, dtype);
  if (output_mask[3]) grad_bias = empty_vector(input, s.C, dtype);
  dispatch_dtype(kOp, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Compute<T>;
    batch_norm_backward(
        guard.device(),
        BatchNormBackward<T>{
            s, data_of<const T>(grad_output), data_of<const T>(input), data_or_null<const T>(clipped),
            data_or_null<const A>(weight), data_of<const A>(mean), data_of<const A>(invstd), data_of<const A>(shift),
            static_cast<Activation>(activation), output_mask[0] ? data_of<T>(grad_input) : nullptr,
            output_mask[1] && reads_output ? data_of<T>(grad_residual) : nullptr,
            output_mask[2] ? data_of<A>(grad_weight) : nullptr, output_mask[3] ? data_of<A>(grad_bias) : nullptr});
  });
  return {grad_input, grad_residual, grad_weight, grad_bias};
}

}  // namespace cnnfast
