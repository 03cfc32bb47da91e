// avg_pool2d_forward and avg_pool2d_backward on the CPU.
#include "cpu/avg_pool2d.h"

#include <optional>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// Elements of the result per task: large against the cost of starting one, small against the caches.
constexpr int64_t kGrain = 1 << 12;
constexpr int64_t kUndilated[] = {1, 1};

AvgPool2dDivisor divisor_of(const char* op, bool count_include_pad, std::optional<int64_t> divisor_override) {
  CNNFAST_CHECK(divisor_override != 0, op, ": divisor must be not zero, but got divisor_override=0");
  return {count_include_pad, divisor_override.value_or(0)};
}

Tensor avg_pool2d_forward(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                          const IntList& padding, bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override) {
  const Pool2dShape s = pool2d_shape("avg_pool2d", input, {kernel_size, stride, padding, kUndilated, ceil_mode});
  const AvgPool2dDivisor divisor = divisor_of("avg_pool2d", count_include_pad, divisor_override);
  const bool channels_last = suggests_channels_last(input);
  const Tensor output = empty(input, {s.N, s.C, s.P, s.Q}, input.dim(), channels_last);
  dispatch_dtype("avg_pool2d", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const AvgPool2dForward<T> args{s, divisor, channels_last, view_of<const T>(input), view_of<T>(output)};
    const int64_t row = channels_last ? s.Q * s.C : s.Q;
    parallel_ranges(s.N * s.C * s.P * s.Q / row, ceil_div(kGrain, row),
                    [&](int64_t begin, int64_t end) { cpu_kernels().of<T>().avg_pool2d.forward(args, begin, end); });
  });
  return output;
}

Tensor avg_pool2d_backward(const Tensor& grad_output, const IntList& input_size, bool channels_last,
                           const IntList& kernel_size, const IntList& stride, const IntList& padding, bool ceil_mode,
                           bool count_include_pad, std::optional<int64_t> divisor_override) {
  constexpr const char* kOp = "avg_pool2d_backward";
  check_list(kOp, "input_size", input_size, 2, 1);
  check_image(kOp, "grad_output", grad_output);
  const Pool2dShape s = pool2d_shape(kOp, batch_of(grad_output), size_from_end(grad_output, 3), input_size[0],
                                     input_size[1], {kernel_size, stride, padding, kUndilated, ceil_mode});
  CNNFAST_CHECK(size_from_end(grad_output, 2) == s.P && size_from_end(grad_output, 1) == s.Q, kOp,
                ": grad_output must end in the output size (", s.P, " x ", s.Q,
                "), but got grad_output.shape=", show_size(grad_output));
  const AvgPool2dDivisor divisor = divisor_of(kOp, count_include_pad, divisor_override);
  const Tensor grad_input = empty(grad_output, {s.N, s.C, s.H, s.W}, grad_output.dim(), channels_last);
  dispatch_dtype(kOp, grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const AvgPool2dBackward<T> args{s, divisor, channels_last, view_of<const T>(grad_output), view_of<T>(grad_input)};
    const int64_t row = channels_last ? s.W * s.C : s.W, scratch = avg_pool2d_backward_scratch(s);
    parallel_ranges(s.N * s.C * s.H * s.W / row, ceil_div(kGrain, row), [&](int64_t begin, int64_t end) {
      Workspace workspace(Workspace::needed<Compute<T>>(scratch));
      cpu_kernels().of<T>().avg_pool2d.backward(args, begin, end, workspace.take<Compute<T>>(scratch));
    });
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("avg_pool2d_forward", TORCH_BOX(&avg_pool2d_forward));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d_forward));
  m.impl("avg_pool2d_backward", TORCH_BOX(&avg_pool2d_backward));
}

}  // namespace cnnfast
