// The convolution's launchers, for the launchers of ops built on it.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"

namespace cnnfast {

// Whether torch would give results of a convolution with these operands, gradients included, in channels_last.
inline bool conv_channels_last(const Tensor& input, const Tensor& weight) {
  return suggests_channels_last(input) || suggests_channels_last(weight);
}

// conv2d + bias, clipped at zero with `relu`.
Tensor conv2d_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                      const Conv2dOptions& options, bool relu);

// (grad_input, grad_weight, grad_bias); what `output_mask` does not ask for is undefined.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   const Conv2dOptions& options, const std::vector<bool>& output_mask);

}  // namespace cnnfast
