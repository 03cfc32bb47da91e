// The launcher side of algorithm `direct` without a pool.
#include "cpu/direct_conv2d.h"

#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// The kernels that take the forward pass, if any, and their plan.
const DirectConv2dKernels* plan_forward(const Conv2dShape& shape, const Strides& output, DirectConv2dPlan* plan) {
  // Results by channels would have to be transposed to NCHW.
  const DirectConv2dKernels &columns = cpu_kernels().direct_conv2d, &channels = cpu_kernels().direct_conv2d_channels;
  if (output.w == 1 && columns.plan(shape, plan)) return &columns;
  return channels.plan(shape, plan) ? &channels : nullptr;
}

// The kernels of a first layer's weight gradient, if it is one, and their plan.
const DirectConv2dKernels* plan_backward_weight(const Conv2dShape& shape, const Strides& grad_output,
                                                DirectConv2dBackwardPlan* plan) {
  const DirectConv2dKernels &columns = cpu_kernels().direct_conv2d_weight,
                            &channels = cpu_kernels().direct_conv2d_channels;
  if (!channels.backward_plan(shape, plan)) return nullptr;
  DirectConv2dBackwardPlan by_columns;
  if (grad_output.w != 1 || !columns.backward_plan(shape, &by_columns)) return &channels;
  *plan = by_columns;
  return &columns;
}

// What the kernels sum over the slices, in their order, and the input gradient where it is wanted.
void run_backward(const DirectConv2dKernels& kernels, const DirectConv2dBackwardPlan& plan, const Conv2dShape& shape,
                  View<const float> grad_output, View<const float> output, View<const float> input,
                  View<const float> weight, View<float> grad_input, View<float> grad_weight, float* grad_bias) {
  const bool want_input = grad_input.data != nullptr, want_weight = grad_weight.data != nullptr;
  const int64_t taps = shape.R * shape.S, weights = shape.K * shape.C * taps, slice_size = weights + shape.K;
  Workspace workspace(Workspace::needed<float>(plan.packed_weight) +
                      Workspace::needed<float>(plan.slices * slice_size));
  float* packed = workspace.take<float>(plan.packed_weight);
  float* partial = workspace.take<float>(plan.slices * slice_size);
  if (want_input) kernels.pack_backward_weight(shape, weight, packed);
  const DirectConv2dBackward job{shape,      plan,        grad_output,         output, input, packed,
                                 grad_input, want_weight, grad_bias != nullptr};
  parallel_tasks(plan.slices, [&](int64_t slice) {
    Workspace scratch(Workspace::needed<char>(plan.workspace_bytes));
    float* sums = partial + slice * slice_size;
    std::memset(sums, 0, static_cast<size_t>(slice_size) * sizeof(float));
    kernels.backward(job, slice, sums, scratch.take<char>(plan.workspace_bytes));
  });
  if (!want_weight && grad_bias == nullptr) return;
  for (int64_t slice = 1; slice < plan.slices; ++slice)
    for (int64_t i = 0; i < slice_size; ++i) partial[i] += partial[slice * slice_size + i];
  if (grad_weight.data != nullptr)
    for (int64_t k = 0; k < shape.K; ++k)
      for (int64_t c = 0; c < shape.C; ++c)
        for (int64_t r = 0; r < shape.R; ++r)
          for (int64_t s = 0; s < shape.S; ++s)
            *grad_weight.at(k, c, r, s) = partial[(k * shape.C + c) * taps + r * shape.S + s];
  if (grad_bias != nullptr) std::memcpy(grad_bias, partial + weights, static_cast<size_t>(shape.K) * sizeof(float));
}

}  // namespace

bool direct_conv2d_takes(const Conv2dShape& shape, const Strides& output) {
  DirectConv2dPlan plan;
  return plan_forward(shape, output, &plan) != nullptr;
}

bool direct_conv2d_takes_backward(const Conv2dShape& shape, const Strides* grad_input) {
  DirectConv2dBackwardPlan plan;
  if ((grad_input == nullptr || grad_input->w == 1) && cpu_kernels().direct_conv2d.backward_plan(shape, &plan))
    return true;
  return grad_input == nullptr && direct_conv2d_takes_backward_weight(shape);
}

bool direct_conv2d_takes_backward_weight(const Conv2dShape& shape) {
  DirectConv2dBackwardPlan plan;
  return cpu_kernels().direct_conv2d_channels.backward_plan(shape, &plan);
}

bool direct_conv2d_forward(const Conv2dShape& shape, View<const float> input, View<const float> weight,
                           const float* bias, const Epilogue<float>& epilogue, View<float> output) {
  DirectConv2dPlan plan;
  const DirectConv2dKernels* kernels = plan_forward(shape, output.stride, &plan);
  if (kernels == nullptr) return false;
  Workspace workspace(Workspace::needed<float>(plan.packed_weight));
  float* packed = workspace.take<float>(plan.packed_weight);
  kernels->pack_weight(shape, weight, bias, packed);
  const DirectConv2d job{shape, plan, input, output, packed, epilogue};
  parallel_tasks(shape.N * plan.bands, [&](int64_t task) {
    Workspace scratch(Workspace::needed<char>(plan.workspace_bytes));
    kernels->forward(job, task / plan.bands, task % plan.bands, scratch.take<char>(plan.workspace_bytes));
  });
  return true;
}

bool direct_conv2d_backward(const Conv2dShape& shape, View<const float> grad_output, View<const float> output,
                            View<const float> input, View<const float> weight, View<float> grad_input,
                            View<float> grad_weight, float* grad_bias) {
  const DirectConv2dKernels& all = cpu_kernels().direct_conv2d;
  const bool want_input = grad_input.data != nullptr, want_sums = grad_weight.data != nullptr || grad_bias != nullptr;
  DirectConv2dBackwardPlan plan, weight_plan;
  const DirectConv2dKernels* first_layer = plan_backward_weight(shape, grad_output.stride, &weight_plan);
  const bool takes_all = (!want_input || grad_input.stride.w == 1) && all.backward_plan(shape, &plan);
  if (!takes_all && (want_input || first_layer == nullptr)) return false;
  if (want_input || first_layer == nullptr) {
    const bool sums_too = first_layer == nullptr;
    run_backward(all, plan, shape, grad_output, output, input, weight, grad_input,
                 sums_too ? grad_weight : View<float>{}, sums_too ? grad_bias : nullptr);
  }
  if (first_layer != nullptr && want_sums)
    run_backward(*first_layer, weight_plan, shape, grad_output, output, input, weight, {}, grad_weight, grad_bias);
  return true;
}

bool direct_conv2d_backward_weight(const Conv2dShape& shape, View<const float> input, View<const float> grad_output,
                                   View<float> grad_weight) {
  DirectConv2dBackwardPlan plan;
  const DirectConv2dKernels* kernels = plan_backward_weight(shape, grad_output.stride, &plan);
  if (kernels == nullptr) return false;
  run_backward(*kernels, plan, shape, grad_output, {}, input, {}, {}, grad_weight, nullptr);
  return true;
}

}  // namespace cnnfast
