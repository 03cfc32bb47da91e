// max_pool2d_forward and max_pool2d_backward on the CPU, of the winner's place and of its code.
#include "ops/max_pool2d.h"

#include <atomic>

#include "cpu/dispatch.h"
#include "cpu/guard.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// Elements of the output, or of grad_input, per task: large against the cost of starting one, small against the caches.
constexpr int64_t kGrain = 1 << 12, kGatherGrain = 1 << 14;

template <class T, class Stored>
const MaxPool2dKernelsOf<T, Stored>& kernels_of() {
  const MaxPool2dKernels<T>& kernels = cpu_kernels().of<T>().max_pool2d;
  if constexpr (sizeof(Stored) == 1) {
    return kernels.code;
  } else {
    return kernels.index;
  }
}

template <class T>
void gather(const MaxPool2dBackward<T, uint8_t>& args) {
  const Pool2dShape& s = args.shape;
  const int64_t row = args.channels_last ? s.W * s.C : s.W;
  parallel_ranges(s.N * s.C * s.H * s.W / row, ceil_div(kGatherGrain, row),
                  [&](int64_t begin, int64_t end) { cpu_kernels().of<T>().max_pool2d.gather(args, begin, end); });
}

// False if a winner lay outside the plane.
template <class T, class Stored>
bool scatter(const MaxPool2dBackward<T, Stored>& args) {
  const Pool2dShape& s = args.shape;
  std::atomic<bool> inside{true};
  const int64_t blocks = max_pool2d_scatter_blocks(s, args.channels_last);
  const int64_t scratch = max_pool2d_scatter_scratch<T>(s, args.channels_last);
  const int64_t block_outputs = ceil_div(s.C, blocks) * s.P * s.Q;
  parallel_ranges(s.N * blocks, ceil_div(kGrain, block_outputs), [&](int64_t begin, int64_t end) {
    Workspace workspace(Workspace::needed<Compute<T>>(scratch));
    if (!kernels_of<T, Stored>().scatter(args, begin, end, workspace.take<Compute<T>>(scratch))) inside = false;
  });
  return inside;
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
  if constexpr (sizeof(Stored) == 1)
    if (max_pool2d_gathers(args)) return gather(args);
  CNNFAST_CHECK(scatter(args),
                "max_pool2d_backward: every winner must lie in the H*W plane or be none, but got one "
                "outside of ",
                args.shape.H, "x", args.shape.W);
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
  m.impl("max_pool2d", TORCH_BOX((&max_pool2d_op<Cpu, 8>)));
  m.impl("max_pool2d_with_code", TORCH_BOX((&max_pool2d_op<Cpu, 1>)));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward_op<Cpu>));
}

}  // namespace cnnfast
