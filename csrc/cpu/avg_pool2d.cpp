// avg_pool2d_forward and avg_pool2d_backward on the CPU.
#include "ops/avg_pool2d.h"

#include "cpu/dispatch.h"
#include "cpu/guard.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// Elements read, or written backward, per task: large against the cost of starting one, small against the caches.
constexpr int64_t kReads = 1 << 14, kWrites = 1 << 12;
// Planes of one window each are summed by registers of planes: the widest has as many.
constexpr int64_t kPlanes = 16;

}  // namespace

template <class T>
void avg_pool2d_forward(Cpu, const AvgPool2dForward<T>& args) {
  const Pool2dShape& s = args.shape;
  const int64_t row = args.channels_last ? s.Q * s.C : s.Q, rows = ceil_div(kReads, row * s.R * s.S);
  parallel_ranges(s.N * s.C * s.P * s.Q / row, row == 1 ? round_up(rows, kPlanes) : rows,
                  [&](int64_t begin, int64_t end) { cpu_kernels().of<T>().avg_pool2d.forward(args, begin, end); });
}

template <class T>
void avg_pool2d_backward(Cpu, const AvgPool2dBackward<T>& args) {
  const Pool2dShape& s = args.shape;
  const int64_t row = args.channels_last ? s.W * s.C : s.W, scratch = avg_pool2d_backward_scratch(s);
  parallel_ranges(s.N * s.C * s.H * s.W / row, ceil_div(kWrites, row), [&](int64_t begin, int64_t end) {
    Workspace workspace(Workspace::needed<Compute<T>>(scratch));
    cpu_kernels().of<T>().avg_pool2d.backward(args, begin, end, workspace.take<Compute<T>>(scratch));
  });
}

#define CNNFAST_INSTANTIATE(T)                                       \
  template void avg_pool2d_forward(Cpu, const AvgPool2dForward<T>&); \
  template void avg_pool2d_backward(Cpu, const AvgPool2dBackward<T>&);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("avg_pool2d_forward", TORCH_BOX(&avg_pool2d_forward_op<Cpu>));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d_forward_op<Cpu>));
  m.impl("avg_pool2d_backward", TORCH_BOX(&avg_pool2d_backward_op<Cpu>));
}

}  // namespace cnnfast
