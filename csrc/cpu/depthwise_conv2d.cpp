// The launcher side of algorithm `depthwise`.
#include "cpu/depthwise_conv2d.h"

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// `all` holds for each image that is read or written, by its strides.
template <class T, class All>
DepthwiseLayout layout_of(View<const T> source, const All& all) {
  if (source.stride.c == 1 && all([](const Strides& stride) { return stride.c == 1; }))
    return DepthwiseLayout::in_place;
  if (source.stride.c == 1) return DepthwiseLayout::channels_last_source;
  return all([](const Strides& stride) { return stride.w == 1; }) ? DepthwiseLayout::columns : DepthwiseLayout::planes;
}

template <class T>
bool gather(const Conv2dShape& shape, bool input_gradient, View<const T> source, View<const T> weight, const T* bias,
            const Epilogue<T>& epilogue, View<T> output) {
  using A = Compute<T>;
  const DepthwiseKernels<T>& kernels = cpu_kernels().of<T>().depthwise;
  DepthwisePlan plan;
  const auto all = [&](const auto& holds) { return holds(source.stride) && holds(output.stride); };
  if (!kernels.plan(shape, input_gradient, layout_of(source, all), &plan)) return false;
  Workspace workspace(Workspace::needed<A>(plan.packed_weight));
  A* packed = workspace.take<A>(plan.packed_weight);
  kernels.pack_weight(shape, plan, input_gradient, weight, bias, packed);
  const DepthwiseGather<T> job{shape, plan, input_gradient, source, packed, epilogue, output};
  parallel_tasks(plan.slices * plan.groups, [&](int64_t task) {
    Workspace scratch(Workspace::needed<char>(plan.workspace_bytes));
    kernels.gather(job, task, scratch.take<char>(plan.workspace_bytes));
  });
  return true;
}

}  // namespace

template <class T>
bool depthwise_conv2d_forward(const Conv2dShape& shape, View<const T> input, View<const T> weight, const T* bias,
                              const Epilogue<T>& epilogue, View<T> output) {
  return gather(shape, false, input, weight, bias, epilogue, output);
}

template <class T>
bool depthwise_conv2d_backward_input(const Conv2dShape& shape, View<const T> grad_output, View<const T> weight,
                                     const T* bias, View<T> grad_input) {
  return gather<T>(shape, true, grad_output, weight, bias, Activation::none, grad_input);
}

template <class T>
bool depthwise_conv2d_backward(const Conv2dShape& shape, View<const T> grad_output, View<const T> output,
                               View<const T> input, View<const T> weight, View<T> grad_input, View<T> grad_weight,
                               T* grad_bias) {
  using A = Compute<T>;
  const DepthwiseKernels<T>& kernels = cpu_kernels().of<T>().depthwise;
  DepthwisePlan plan;
  const bool want_input = grad_input.data != nullptr, want_weight = grad_weight.data != nullptr;
  const auto all = [&](const auto& holds) {
    return holds(input.stride) && holds(grad_output.stride) && output.data == nullptr &&
           (!want_input || holds(grad_input.stride));
  };
  if (!kernels.backward_plan(shape, layout_of(input, all), &plan)) return false;
  const int64_t sums_size = plan.slices * plan.sums;
  Workspace workspace(Workspace::needed<A>(plan.packed_weight) + Workspace::needed<A>(sums_size));
  A* packed = workspace.take<A>(plan.packed_weight);
  A* sums = workspace.take<A>(sums_size);
  if (want_input) kernels.pack_weight(shape, plan, true, weight, nullptr, packed);
  const DepthwiseBackward<T> job{shape,      plan,        grad_output,         output, input, packed,
                                 grad_input, want_weight, grad_bias != nullptr};
  parallel_tasks(plan.slices * plan.groups, [&](int64_t task) {
    Workspace scratch(Workspace::needed<char>(plan.workspace_bytes));
    kernels.backward(job, task, sums, scratch.take<char>(plan.workspace_bytes));
  });
  if (want_weight || grad_bias != nullptr) kernels.finish(shape, plan, sums, grad_weight, grad_bias);
  return true;
}

#define CNNFAST_INSTANTIATE(T)                                                                                        \
  template bool depthwise_conv2d_forward(const Conv2dShape&, View<const T>, View<const T>, const T*,                  \
                                         const Epilogue<T>&, View<T>);                                                \
  template bool depthwise_conv2d_backward_input(const Conv2dShape&, View<const T>, View<const T>, const T*, View<T>); \
  template bool depthwise_conv2d_backward(const Conv2dShape&, View<const T>, View<const T>, View<const T>,            \
                                          View<const T>, View<T>, View<T>, T*);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
