// max_pool2d_forward and max_pool2d_backward on the CPU, of the winner's place and of its code after ReLU.
#include "ops/max_pool2d.h"

#include <atomic>

#include "cpu/dispatch.h"
#include "cpu/guard.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// Elements of the output per task: large against the cost of starting one, small against the caches.
constexpr int64_t kGrain = 1 << 12;

template <class T, class Stored>
const MaxPool2dKernelsOf<T, Stored>& kernels_of() {
  const MaxPool2dKernels<T>& kernels = cpu_kernels().of<T>().max_pool2d;
  if constexpr (sizeof(Stored) == 1) {
    return kernels.relu;
  } else {
    return kernels.plain;
  }
}

}  // namespace

template <class T, class Stored>
void max_pool2d_forward(Cpu, const MaxPool2dForward<T, Stored>& args) {
  const Pool2dShape& s = args.shape;
  const int64_t row = args.channels_last ? s.Q * s.C : s.Q;
  parallel_ranges(s.N * s.C * s.P * s.Q / row, ceil_div(kGrain, row),
                  [&](int64_t begin, int64_t end) { kernels_of<T, Stored>().forward(args, begin, end); });
}

template <class T, class Stored>
void max_pool2d_backward(Cpu, const MaxPool2dBackward<T, Stored>& args) {
  const Pool2dShape& s = args.shape;
  std::atomic<bool> inside{true};
  const int64_t blocks = max_pool2d_backward_blocks(s, args.channels_last);
  const int64_t scratch = max_pool2d_backward_scratch<T>(s, args.channels_last);
  const int64_t block_outputs = ceil_div(s.C, blocks) * s.P * s.Q;
  parallel_ranges(s.N * blocks, ceil_div(kGrain, block_outputs), [&](int64_t begin, int64_t end) {
    Workspace workspace(Workspace::needed<Compute<T>>(scratch));
    if (!kernels_of<T, Stored>().backward(args, begin, end, workspace.take<Compute<T>>(scratch))) inside = false;
  });
  CNNFAST_CHECK(inside, "max_pool2d_backward: every winner must lie in the H*W plane or be -1, but got one outside of ",
                s.H, "x", s.W);
}

#define CNNFAST_INSTANTIATE(T)                                                  \
  template void max_pool2d_forward(Cpu, const MaxPool2dForward<T, int64_t>&);   \
  template void max_pool2d_forward(Cpu, const MaxPool2dForward<T, uint8_t>&);   \
  template void max_pool2d_backward(Cpu, const MaxPool2dBackward<T, int64_t>&); \
  template void max_pool2d_backward(Cpu, const MaxPool2dBackward<T, uint8_t>&);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("max_pool2d_forward", TORCH_BOX(&max_pool2d_forward_op<Cpu>));
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d_op<Cpu>));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward_op<Cpu>));
}

}  // namespace cnnfast
