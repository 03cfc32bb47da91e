// relu_forward and relu_backward on the CPU.
#include "ops/relu.h"

#include "common/number.h"
#include "cpu/dispatch.h"
#include "cpu/guard.h"
#include "cpu/parallel.h"

namespace cnnfast {
namespace {

// Elements per task: large against the cost of starting one, small against the caches.
constexpr int64_t kGrain = 1 << 15;

}  // namespace

template <class T>
void relu_forward(Cpu, const T* input, T* output, int64_t count) {
  const ReluKernels<T>& kernels = cpu_kernels().of<T>().relu;
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) { kernels.forward(input, output, begin, end); });
}

template <class T>
void relu_backward(Cpu, const T* grad_output, const T* output, T* grad_input, int64_t count) {
  const ReluKernels<T>& kernels = cpu_kernels().of<T>().relu;
  parallel_ranges(count, kGrain,
                  [&](int64_t begin, int64_t end) { kernels.backward(grad_output, output, grad_input, begin, end); });
}

#define CNNFAST_INSTANTIATE(T)                            \
  template void relu_forward(Cpu, const T*, T*, int64_t); \
  template void relu_backward(Cpu, const T*, const T*, T*, int64_t);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("relu_forward", TORCH_BOX(&relu_forward_op<Cpu>));
  m.impl("relu", TORCH_BOX(&relu_forward_op<Cpu>));
  m.impl("relu_backward", TORCH_BOX(&relu_backward_op<Cpu>));
}

}  // namespace cnnfast
