// float16 and bfloat16 where a device has no arithmetic for them (Device::kWidens). Sums are float32's anyway, so that
// float32 copies through float32's kernels, Winograd's among them, are ahead of kernels that convert each element as
// often as they read it. Depthwise kernels read each once, and convert it themselves.
#pragma once

#include <optional>
#include <tuple>

#include "tensor.h"

namespace cnnfast {

template <class Device>
bool is_widened(const Tensor& tensor, const Conv2dShape& s) {
  const ScalarType dtype = tensor.scalar_type();
  const bool depthwise = s.G == s.C && s.G == s.K;
  return Device::kWidens && !depthwise && (dtype == ScalarType::Half || dtype == ScalarType::BFloat16);
}

inline Tensor widened(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); }
inline std::optional<Tensor> widened(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional(widened(*tensor)) : std::nullopt;
}

// A result, which may be absent, as the caller's dtype.
inline Tensor narrowed(const Tensor& result, ScalarType dtype) {
  return result.defined() ? torch::stable::to(result, dtype) : result;
}

inline std::tuple<Tensor, Tensor, Tensor> narrowed(const std::tuple<Tensor, Tensor, Tensor>& results,
                                                   ScalarType dtype) {
  const auto& [first, second, third] = results;
  return {narrowed(first, dtype), narrowed(second, dtype), narrowed(third, dtype)};
}

}  // namespace cnnfast
