// relu_forward and relu_backward on the CPU.
#include "cpu/relu.h"

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "tensor.h"

namespace cnnfast {
namespace {

// Elements per task: large against the cost of starting one, small against the caches.
constexpr int64_t kGrain = 1 << 15;

// Dense in some order of dimensions, without gaps or overlaps.
bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  return suggests_channels_last(tensor) && tensor.stride(1) == 1 && tensor.stride(3) == tensor.size(1) &&
         tensor.stride(2) == tensor.size(1) * tensor.size(3) &&
         tensor.stride(0) == tensor.size(1) * tensor.size(3) * tensor.size(2);
}

Tensor relu_forward(const Tensor& input_any) {
  const Tensor input = is_dense(input_any) ? input_any : torch::stable::contiguous(input_any);
  Tensor output = torch::stable::empty_like(input);
  dispatch_dtype("relu", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* x = data_of<T>(input);
    T* y = data_of<T>(output);
    parallel_ranges(input.numel(), kGrain,
                    [&](int64_t begin, int64_t end) { cpu_kernels().of<T>().relu.forward(x, y, begin, end); });
  });
  return output;
}

Tensor relu_backward(const Tensor& grad_output_any, const Tensor& output_any) {
  const Tensor output = is_dense(output_any) ? output_any : torch::stable::contiguous(output_any);
  Tensor grad_input = torch::stable::empty_like(output);
  // The gradient in the output's layout, whatever its own.
  Tensor grad_output = grad_output_any;
  bool same = grad_output.dim() == output.dim();
  for (int64_t d = 0; same && d < output.dim(); ++d) same = grad_output.stride(d) == output.stride(d);
  if (!same) {
    grad_output = torch::stable::empty_like(output);
    torch::stable::copy_(grad_output, grad_output_any);
  }
  dispatch_dtype("relu", output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* dy = data_of<T>(grad_output);
    const T* y = data_of<T>(output);
    T* dx = data_of<T>(grad_input);
    parallel_ranges(output.numel(), kGrain,
                    [&](int64_t begin, int64_t end) { cpu_kernels().of<T>().relu.backward(dy, y, dx, begin, end); });
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("relu_forward", TORCH_BOX(&relu_forward));
  m.impl("relu", TORCH_BOX(&relu_forward));
  m.impl("relu_backward", TORCH_BOX(&relu_backward));
}

}  // namespace cnnfast
