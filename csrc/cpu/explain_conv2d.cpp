// explain_conv2d: which algorithm takes a convolution, by the questions that conv2d_launch.h asks, in their order.
#include <string>

#include "cpu/depthwise_conv2d.h"
#include "cpu/device.h"
#include "cpu/direct_conv2d.h"
#include "cpu/dispatch.h"
#include "cpu/guard.h"
#include "cpu/relu.h"
#include "cpu/winograd_conv2d.h"
#include "ops/conv2d.h"

namespace cnnfast {
namespace {

template <class T>
class Explanation {
 public:
  Explanation(const Conv2dShape& shape, const Strides& input, const Strides& weight, bool channels_last)
      : s_(shape), weight_(weight), by_channels_(input.c == 1), channels_last_(channels_last) {}

  const char* forward() const {
    if (kFloat && winograd_takes(s_, weight_, WinogradRival::sums)) return "winograd";
    if (kFloat && direct_conv2d_takes(s_, dense_strides(s_.K, s_.P, s_.Q, channels_last_))) return "direct";
    return depthwise(false, by_channels_) ? "depthwise" : "implicit_gemm";
  }
  // All that take the shape, whatever the cost model thinks of them.
  std::string candidates() const {
    std::string names;
    if (kFloat && winograd_takes(s_, weight_, WinogradRival::none)) names += "\"winograd\", ";
    if (kFloat && direct_conv2d_takes(s_, dense_strides(s_.K, s_.P, s_.Q, channels_last_))) names += "\"direct\", ";
    if (depthwise(false, by_channels_)) names += "\"depthwise\", ";
    return "[" + names + "\"implicit_gemm\"]";
  }
  const char* grad_input() const {
    if (direct_backward(true)) return "direct";
    if (depthwise_backward()) return "depthwise";
    if (kFloat && winograd_takes_backward_input(s_, weight_)) return "winograd";
    return depthwise(true, channels_last_) ? "depthwise" : "implicit_gemm";
  }
  const char* grad_weight(bool input_gradient) const {
    if (direct_backward(input_gradient)) return "direct";
    if (depthwise_backward()) return "depthwise";
    const Strides w = dense_strides(s_.C / s_.G, s_.R, s_.S, channels_last_);
    if (kFloat && winograd_takes_backward_weight(s_, w)) return "winograd";
    return kFloat && direct_conv2d_takes_backward_weight(s_) ? "direct" : "implicit_gemm";
  }

 private:
  static constexpr bool kFloat = std::is_same_v<T, float>;

  bool direct_backward(bool input_gradient) const {
    const Strides x = dense_strides(s_.C, s_.H, s_.W, channels_last_);
    return kFloat && direct_conv2d_takes_backward(s_, input_gradient ? &x : nullptr);
  }
  static DepthwiseLayout layout(bool channels_last) {
    return channels_last ? DepthwiseLayout::in_place : DepthwiseLayout::columns;
  }
  bool depthwise(bool input_gradient, bool channels_last) const {
    DepthwisePlan plan;
    return cpu_kernels().of<T>().depthwise.plan(s_, input_gradient, layout(channels_last), &plan);
  }
  // (Back through a ReLU the layout is another: only rows so wide that they do not fit a slab are told by it.)
  bool depthwise_backward() const {
    DepthwisePlan plan;
    return cpu_kernels().of<T>().depthwise.backward_plan(s_, layout(by_channels_), &plan);
  }

  const Conv2dShape& s_;
  const Strides& weight_;
  bool by_channels_, channels_last_;
};

std::string explain_conv2d(const Tensor& input, const Tensor& weight, const IntList& options, bool input_gradient) {
  constexpr const char* kOp = "explain";
  check_options(kOp, options, Conv2dOptions::kCount + 1);
  const Conv2dShape s = conv2d_shape(kOp, input, weight, std::nullopt, conv2d_options(options));
  std::string result;
  dispatch_dtype(kOp, is_widened<Cpu>(input, s) ? ScalarType::Float : input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Strides x = view_of<const T>(input).stride, w = view_of<const T>(weight).stride;
    const Explanation<T> explanation(s, x, w, conv_channels_last(input, weight));
    result = std::string("{\"forward\": \"") + explanation.forward() + "\", \"grad_weight\": \"" +
             explanation.grad_weight(input_gradient) + "\", \"candidates\": " + explanation.candidates();
    if (input_gradient) result += std::string(", \"grad_input\": \"") + explanation.grad_input() + "\"";
  });
  return result + "}";
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("explain_conv2d", TORCH_BOX(&explain_conv2d)); }

}  // namespace cnnfast
