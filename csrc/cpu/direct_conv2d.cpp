// The launcher side of algorithm `direct` without a pool.
#include "cpu/direct_conv2d.h"

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {

bool direct_conv2d_forward(const Conv2dShape& shape, View<const float> input, View<const float> weight,
                           const float* bias, bool relu, View<float> output) {
  const DirectConv2dKernels& kernels = cpu_kernels().direct_conv2d;
  DirectConv2dPlan plan;
  if (output.stride.w != 1 || !kernels.plan(shape, &plan)) return false;
  Workspace workspace(Workspace::needed<float>(plan.packed_weight));
  float* packed = workspace.take<float>(plan.packed_weight);
  kernels.pack_weight(shape, weight, bias, packed);
  const DirectConv2d job{shape, plan, input, output, packed, relu};
  parallel_tasks(shape.N * plan.bands, [&](int64_t task) {
    Workspace scratch(Workspace::needed<char>(plan.workspace_bytes));
    kernels.forward(job, task / plan.bands, task % plan.bands, scratch.take<char>(plan.workspace_bytes));
  });
  return true;
}

}  // namespace cnnfast
