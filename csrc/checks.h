// Every check of the ops' arguments, once: tensors and lists in, shapes out. Each launcher of each device calls these
// first, so no route to a kernel goes around them. Messages read "op: rule, but got name=value".
#pragma once

#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "tensor.h"

namespace cnnfast {

using IntList = std::vector<int64_t>;  // as ops receive it
using Ints = std::span<const int64_t>;

inline std::string show(Ints values) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "" : ", ") << values[i];
  out << ']';
  return out.str();
}
inline std::string show_size(const Tensor& tensor) {
  const auto size = tensor.sizes();
  return show({size.data(), size.size()});
}

inline std::string show_device(const Tensor& tensor) {
  const std::string type = tensor.is_cpu() ? "cpu" : tensor.is_cuda() ? "cuda" : "other";
  return tensor.is_cpu() ? type : type + ":" + std::to_string(tensor.get_device_index());
}

inline void check_list(const char* op, const char* name, Ints values, size_t count, int64_t least) {
  CNNFAST_CHECK(values.size() == count, op, ": ", name, " must have ", count, " values, but got ", name, "=",
                show(values));
  for (const int64_t value : values) {
    CNNFAST_CHECK(value >= least, op, ": ", name, " must be ",
                  least == 1 ? "greater than zero" : "non-negative (negative padding is not supported)", ", but got ",
                  name, "=", show(values));
  }
}

inline void check_device(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                         const Tensor& like) {
  CNNFAST_CHECK(tensor.is_cpu() == like.is_cpu() && tensor.get_device_index() == like.get_device_index(), op, ": ",
                name, " must be on the device of ", like_name, ", but got ", like_name, ".device=", show_device(like),
                ", ", name, ".device=", show_device(tensor));
}

inline void check_same(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                       const Tensor& like) {
  CNNFAST_CHECK(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " must have the dtype of ", like_name,
                " (expected the same dtype for both), but got ", like_name, ".dtype=", like.scalar_type(), ", ", name,
                ".dtype=", tensor.scalar_type());
  check_device(op, name, tensor, like_name, like);
}

// [N, C, H, W] or, unbatched, [C, H, W].
inline void check_image(const char* op, const char* name, const Tensor& tensor) {
  const int64_t dims = tensor.dim();
  CNNFAST_CHECK(dims == 3 || dims == 4, op, ": ", name,
                " must be 3D (unbatched) or 4D (batched): [C, H, W] or [N, C, H, W], but got ", name,
                ".shape=", show_size(tensor));
}

inline int64_t batch_of(const Tensor& image) { return image.dim() == 4 ? image.size(0) : 1; }
// Size of dimension d counted from the end: 1 is W, 2 is H, 3 is C.
inline int64_t size_from_end(const Tensor& image, int64_t d) { return image.size(image.dim() - d); }

// How the raw ops of convolutions take their numbers: as one list, for each list of a call costs about as much as the
// rest of its dispatch. allow_tf32 is the list's last number; where float32 is float32 anyway, it does nothing.
struct Conv2dOptions {
  static constexpr size_t kCount = 9;  // and allow_tf32
  Ints stride, padding, dilation;      // padding is (top, bottom, left, right)
  int64_t groups;
  bool allow_tf32;
};
struct ConvTranspose2dOptions {
  static constexpr size_t kCount = 9;  // and allow_tf32
  Ints stride, padding, output_padding;
  int64_t groups;
  Ints dilation;
  bool allow_tf32;
};
struct MaxPool2dOptions {
  static constexpr size_t kCount = 9;
  Ints kernel_size, stride, padding, dilation;
  bool ceil_mode;
};

inline void check_options(const char* op, Ints options, size_t count) {
  CNNFAST_CHECK(options.size() == count, op, ": options must have ", count, " values, but got options=", show(options));
}
// They point into the list.
inline Conv2dOptions conv2d_options(Ints list) {
  return {list.subspan(0, 2), list.subspan(2, 4), list.subspan(6, 2), list[8], list.back() != 0};
}
inline ConvTranspose2dOptions conv_transpose2d_options(Ints list) {
  return {list.subspan(0, 2), list.subspan(2, 2), list.subspan(4, 2), list[6], list.subspan(7, 2), list.back() != 0};
}
inline MaxPool2dOptions max_pool2d_options(Ints list) {
  return {list.subspan(0, 2), list.subspan(2, 2), list.subspan(4, 2), list.subspan(6, 2), list[8] != 0};
}

// Shapes of conv2d.
inline Conv2dShape conv2d_shape(const char* op, const Tensor& input, const Tensor& weight,
                                const std::optional<Tensor>& bias, const Conv2dOptions& options) {
  const auto& [stride, padding, dilation, groups, allow_tf32] = options;
  check_image(op, "input", input);
  CNNFAST_CHECK(weight.dim() == 4, op,
                ": weight must have 4 dimensions [K, C/groups, R, S], but got weight.shape=", show_size(weight));
  check_list(op, "stride", stride, 2, 1);
  check_list(op, "padding", padding, 4, 0);
  check_list(op, "dilation", dilation, 2, 1);
  CNNFAST_CHECK(groups > 0, op, ": groups must be greater than zero, but got groups=", groups);
  check_same(op, "weight", weight, "input", input);

  Conv2dShape s{};
  s.N = batch_of(input);
  s.C = size_from_end(input, 3), s.H = size_from_end(input, 2), s.W = size_from_end(input, 1);
  s.K = weight.size(0), s.R = weight.size(2), s.S = weight.size(3);
  s.G = groups;
  s.stride_h = stride[0], s.stride_w = stride[1];
  s.pad_top = padding[0], s.pad_bottom = padding[1], s.pad_left = padding[2], s.pad_right = padding[3];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];

  CNNFAST_CHECK(s.K > 0 && s.R > 0 && s.S > 0, op,
                ": weight must have no empty dimension, but got weight.shape=", show_size(weight));
  CNNFAST_CHECK(s.C == weight.size(1) * groups, op, ": given groups=", groups,
                ", weight of shape [K, C/groups, R, S] = ", show_size(weight), " expects input to have ",
                weight.size(1) * groups, " channels, but got input.shape=", show_size(input));
  CNNFAST_CHECK(s.K % groups == 0, op, ": out_channels must be divisible by groups, but got out_channels=", s.K,
                ", groups=", groups);
  if (bias.has_value()) {
    CNNFAST_CHECK(bias->dim() == 1 && bias->size(0) == s.K, op, ": bias must have shape [K] = [", s.K,
                  "], but got bias.shape=", show_size(*bias));
    check_same(op, "bias", *bias, "input", input);
  }
  CNNFAST_CHECK(s.N == 0 || (s.H > 0 && s.W > 0), op,
                ": input must not be empty but for its batch or channels, but got input.shape=", show_size(input));
  const int64_t extent_h = s.dilation_h * (s.R - 1) + 1, extent_w = s.dilation_w * (s.S - 1) + 1;
  const int64_t padded_h = s.H + s.pad_top + s.pad_bottom, padded_w = s.W + s.pad_left + s.pad_right;
  CNNFAST_CHECK(padded_h >= extent_h && padded_w >= extent_w, op,
                ": kernel size can't be greater than the padded input, but got kernel extent (", extent_h, " x ",
                extent_w, "), padded input (", padded_h, " x ", padded_w, ")");
  s.P = conv_output_size(s.H, s.R, s.stride_h, s.pad_top + s.pad_bottom, s.dilation_h);
  s.Q = conv_output_size(s.W, s.S, s.stride_w, s.pad_left + s.pad_right, s.dilation_w);
  return s;
}

// The convolution whose input gradient is this transposed convolution: its input is our output (C, H, W), its output
// our input (K, P, Q). weight is [K, C/groups, R, S] in both readings.
inline Conv2dShape conv_transpose2d_shape(const char* op, const Tensor& input, const Tensor& weight,
                                          const std::optional<Tensor>& bias, const ConvTranspose2dOptions& options) {
  const auto& [stride, padding, output_padding, groups, dilation, allow_tf32] = options;
  check_image(op, "input", input);
  CNNFAST_CHECK(weight.dim() == 4, op,
                ": weight must have 4 dimensions [in_channels, out_channels/groups, R, S], but got weight.shape=",
                show_size(weight));
  check_list(op, "stride", stride, 2, 1);
  check_list(op, "padding", padding, 2, 0);
  check_list(op, "output_padding", output_padding, 2, 0);
  check_list(op, "dilation", dilation, 2, 1);
  CNNFAST_CHECK(groups > 0, op, ": groups must be greater than zero, but got groups=", groups);
  check_same(op, "weight", weight, "input", input);
  for (int d = 0; d < 2; ++d) {
    CNNFAST_CHECK(output_padding[d] < stride[d] || output_padding[d] < dilation[d], op,
                  ": output padding must be smaller than either stride or dilation, but got output_padding=",
                  show(output_padding), ", stride=", show(stride), ", dilation=", show(dilation));
  }

  Conv2dShape s{};
  s.N = batch_of(input);
  s.K = size_from_end(input, 3), s.P = size_from_end(input, 2), s.Q = size_from_end(input, 1);
  s.C = weight.size(1) * groups, s.R = weight.size(2), s.S = weight.size(3);
  s.G = groups;
  s.stride_h = stride[0], s.stride_w = stride[1];
  s.pad_top = s.pad_bottom = padding[0], s.pad_left = s.pad_right = padding[1];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];

  CNNFAST_CHECK(s.C > 0 && s.R > 0 && s.S > 0, op,
                ": weight must have no empty dimension, but got weight.shape=", show_size(weight));
  CNNFAST_CHECK(weight.size(0) == s.K, op, ": given transposed=1, weight of shape ", show_size(weight),
                " expects input to have ", weight.size(0), " channels, but got input.shape=", show_size(input));
  CNNFAST_CHECK(s.K % groups == 0, op, ": in_channels must be divisible by groups, but got in_channels=", s.K,
                ", groups=", groups);
  CNNFAST_CHECK(s.K > 0 && (s.N == 0 || (s.P > 0 && s.Q > 0)), op,
                ": input must not be empty but for its batch, but got input.shape=", show_size(input));
  if (bias.has_value()) {
    CNNFAST_CHECK(bias->dim() == 1 && bias->size(0) == s.C, op, ": bias must have shape [", s.C,
                  "], but got bias.shape=", show_size(*bias));
    check_same(op, "bias", *bias, "input", input);
  }
  s.H = (s.P - 1) * s.stride_h - 2 * padding[0] + s.dilation_h * (s.R - 1) + output_padding[0] + 1;
  s.W = (s.Q - 1) * s.stride_w - 2 * padding[1] + s.dilation_w * (s.S - 1) + output_padding[1] + 1;
  CNNFAST_CHECK(s.N == 0 ? s.H >= 0 && s.W >= 0 : s.H > 0 && s.W > 0, op,
                ": output size must be positive, but got output size (", s.H, " x ", s.W,
                "); output size is too small");
  return s;
}

// The gradient of an output of size [N, K, P, Q].
inline void check_grad_output(const char* op, const Tensor& grad_output, const Tensor& input,
                              const std::array<int64_t, 4>& expected) {
  const size_t skip = input.dim() == 4 ? 0 : 1;
  bool same = grad_output.dim() == input.dim();
  for (size_t d = skip; same && d < 4; ++d) same = grad_output.size(static_cast<int64_t>(d - skip)) == expected[d];
  CNNFAST_CHECK(same, op, ": grad_output must have shape ", show(Ints(expected).subspan(skip)),
                ", but got grad_output.shape=", show_size(grad_output));
  check_same(op, "grad_output", grad_output, "input", input);
}

inline void check_output_mask(const char* op, const std::vector<bool>& output_mask) {
  CNNFAST_CHECK(output_mask.size() == 3, op, ": output_mask must have 3 values, but got ", output_mask.size());
}

// Shapes of a pooling over a [N, C, H, W] map. `padding` may be at most half of the kernel.
inline Pool2dShape pool2d_shape(const char* op, int64_t N, int64_t C, int64_t H, int64_t W,
                                const MaxPool2dOptions& options) {
  const auto& [kernel_size, stride, padding, dilation, ceil_mode] = options;
  check_list(op, "kernel_size", kernel_size, 2, 1);
  check_list(op, "stride", stride, 2, 1);
  check_list(op, "padding", padding, 2, 0);
  check_list(op, "dilation", dilation, 2, 1);
  Pool2dShape s{};
  s.N = N, s.C = C, s.H = H, s.W = W;
  s.R = kernel_size[0], s.S = kernel_size[1];
  s.stride_h = stride[0], s.stride_w = stride[1];
  s.pad_h = padding[0], s.pad_w = padding[1];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  for (int d = 0; d < 2; ++d) {
    // Of the kernel, not of its dilated extent: torch checks both, and this is the stricter.
    CNNFAST_CHECK(padding[d] <= kernel_size[d] / 2, op,
                  ": padding should be at most half of kernel size, but got padding=", show(padding),
                  ", kernel_size=", show(kernel_size));
  }
  CNNFAST_CHECK(C > 0 && H > 0 && W > 0, op,
                ": input must not be empty but for its batch (non-zero size for C, H, W), but got C=", C, ", H=", H,
                ", W=", W);
  s.P = pool_output_size(H, s.R, s.stride_h, s.pad_h, s.dilation_h, ceil_mode);
  s.Q = pool_output_size(W, s.S, s.stride_w, s.pad_w, s.dilation_w, ceil_mode);
  CNNFAST_CHECK(s.P >= 1 && s.Q >= 1, op, ": output size is too small: given input size (", C, "x", H, "x", W,
                "), but got output size (", C, "x", s.P, "x", s.Q, ")");
  return s;
}

inline Pool2dShape pool2d_shape(const char* op, const Tensor& input, const MaxPool2dOptions& options) {
  check_image(op, "input", input);
  return pool2d_shape(op, batch_of(input), size_from_end(input, 3), size_from_end(input, 2), size_from_end(input, 1),
                      options);
}

}  // namespace cnnfast
