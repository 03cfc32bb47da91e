// relu_forward and relu_backward on the CPU.
#include "cpu/relu.h"

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/relu_launch.h"
#include "tensor.h"

namespace cnnfast {
namespace {

// Elements per task: large against the cost of starting one, small against the caches.
constexpr int64_t kGrain = 1 << 15;

// Whether elements of the same index lie at the same place in both. (Dimensions of one element have no say.)
bool same_layout(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d)
    same = a.size(d) == b.size(d) && (a.size(d) == 1 || a.stride(d) == b.stride(d));
  return same;
}

// `tensor`, or a copy of it, in the layout of `like`.
Tensor in_layout_of(const Tensor& like, const Tensor& tensor) {
  if (same_layout(tensor, like)) return tensor;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor relu_forward(const Tensor& input_any) {
  // Dense, and in the order of the input's strides: as torch's.
  Tensor output = torch::stable::empty_like(input_any);
  const Tensor input = in_layout_of(output, input_any);
  dispatch_dtype("relu", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* x = data_of<T>(input);
    T* y = data_of<T>(output);
    parallel_ranges(input.numel(), kGrain,
                    [&](int64_t begin, int64_t end) { cpu_kernels().of<T>().relu.forward(x, y, begin, end); });
  });
  return output;
}

}  // namespace

Tensor relu_backward(const Tensor& grad_output_any, const Tensor& output_any) {
  check_same("relu_backward", "grad_output", grad_output_any, "output", output_any);
  CNNFAST_CHECK(show_size(grad_output_any) == show_size(output_any),
                "relu_backward: grad_output must have the shape of output, but got grad_output.shape=",
                show_size(grad_output_any), ", output.shape=", show_size(output_any));
  Tensor grad_input = torch::stable::empty_like(output_any);
  const Tensor output = in_layout_of(grad_input, output_any);
  const Tensor grad_output = in_layout_of(grad_input, grad_output_any);
  dispatch_dtype("relu_backward", output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* dy = data_of<T>(grad_output);
    const T* y = data_of<T>(output);
    T* dx = data_of<T>(grad_input);
    parallel_ranges(output.numel(), kGrain,
                    [&](int64_t begin, int64_t end) { cpu_kernels().of<T>().relu.backward(dy, y, dx, begin, end); });
  });
  return grad_input;
}

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("relu_forward", TORCH_BOX(&relu_forward));
  m.impl("relu", TORCH_BOX(&relu_forward));
  m.impl("relu_backward", TORCH_BOX(&relu_backward));
}

}  // namespace cnnfast
