// The launcher side of algorithm `winograd`: a chunk's stages one after the other, each on all threads; or, where there
// are chunks enough, each chunk by one thread, in whose cache it then stays. Either way does the same sums.
#include "cpu/winograd_conv2d.h"

#include <atomic>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

constexpr int64_t kChunksPerThread = 4;

// Becomes false where a task's results are not finite.
class Finite {
 public:
  void also(bool finite) {
    if (!finite) finite_.store(false, std::memory_order_relaxed);
  }
  explicit operator bool() const { return finite_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> finite_ = true;
};

// The two transformed tensors of a chunk.
struct ChunkMemory {
  Workspace workspace;
  float *source, *product;

  explicit ChunkMemory(const WinogradPlan& plan)
      : workspace(Workspace::needed<float>(plan.source_floats) + Workspace::needed<float>(plan.product_floats)),
        source(workspace.take<float>(plan.source_floats)),
        product(workspace.take<float>(plan.product_floats)) {}
};

int64_t strips_of(const WinogradPlan& plan, int64_t chunk) { return min(plan.chunk, plan.strips - chunk * plan.chunk); }

constexpr auto in_parallel = [](int64_t tasks, const auto& task) { parallel_tasks(tasks, task); };
constexpr auto in_turn = [](int64_t tasks, const auto& task) {
  for (int64_t i = 0; i < tasks; ++i) task(i);
};

void run_chunk(const WinogradJob& job, int64_t chunk, const ChunkMemory& memory, const auto& for_each_task,
               Finite& finite) {
  const WinogradConv2dKernels& kernels = cpu_kernels().winograd_conv2d;
  const WinogradPlan& plan = job.plan;
  for_each_task(strips_of(plan, chunk) * plan.source_tasks, [&](int64_t task) {
    Workspace scratch(Workspace::needed<float>(plan.scratch_floats));
    kernels.transform_source(job.conv, plan, job.source, chunk, task, memory.source,
                             scratch.take<float>(plan.scratch_floats));
  });
  for_each_task(plan.multiply_tasks, [&](int64_t task) {
    Workspace scratch(Workspace::needed<float>(plan.multiply_floats));
    kernels.multiply(job, chunk, task, memory.source, memory.product, scratch.take<float>(plan.multiply_floats));
  });
  for_each_task(strips_of(plan, chunk) * plan.product_tasks,
                [&](int64_t task) { finite.also(kernels.transform_output(job, chunk, task, memory.product)); });
}

void run(const WinogradJob& job, Finite& finite) {
  const WinogradPlan& plan = job.plan;
  if (plan.chunks >= kChunksPerThread * thread_count()) {
    parallel_tasks(plan.chunks, [&](int64_t chunk) { run_chunk(job, chunk, ChunkMemory(plan), in_turn, finite); });
  } else {
    const ChunkMemory memory(plan);
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) run_chunk(job, chunk, memory, in_parallel, finite);
  }
}

// One convolution per group.
bool winograd_conv2d(int64_t groups, const WinogradConv& conv, View<const float> source,
                     const GatherWeight<const float>& weight, const float* bias, bool relu, View<float> output) {
  const WinogradConv2dKernels& kernels = cpu_kernels().winograd_conv2d;
  WinogradPlan plan;
  if (!kernels.plan(conv, &plan)) return false;
  Workspace workspace(Workspace::needed<float>(plan.packed_weight));
  float* packed = workspace.take<float>(plan.packed_weight);
  Finite finite;
  for (int64_t g = 0; g < groups && finite; ++g) {
    WinogradJob job{conv, plan, source, weight, packed, bias, relu, output};
    job.source.data += g * conv.C * source.stride.c;
    job.output.data += g * conv.K * output.stride.c;
    job.weight.data += g * weight.group;
    if (bias != nullptr) job.bias += g * conv.K;
    if (plan.packed_weight > 0)
      parallel_tasks(plan.weight_panels, [&](int64_t panel) { kernels.pack_weight(conv, job.weight, packed, panel); });
    run(job, finite);
  }
  return static_cast<bool>(finite);
}

bool is_winograd(const Conv2dShape& s) {
  return s.R == kWinogradTaps && s.S == kWinogradTaps && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
         s.dilation_w == 1;
}

WinogradConv forward_of(const Conv2dShape& s) {
  return {s.N, s.C / s.G, s.K / s.G, s.H, s.W, s.P, s.Q, s.pad_top, s.pad_left};
}

}  // namespace

bool winograd_conv2d_forward(const Conv2dShape& s, View<const float> input, View<const float> weight, const float* bias,
                             bool relu, View<float> output) {
  if (!is_winograd(s)) return false;
  const WinogradConv conv = forward_of(s);
  const Strides& w = weight.stride;
  return winograd_conv2d(s.G, conv, input, {weight.data, conv.K * w.n, w.n, w.c, w.h, w.w}, bias, relu, output);
}

// The convolution of grad_output with the kernels turned by half a turn.
bool winograd_conv2d_backward_input(const Conv2dShape& s, View<const float> grad_output, View<const float> weight,
                                    const float* bias, View<float> grad_input) {
  if (!is_winograd(s)) return false;
  const int64_t last = kWinogradTaps - 1;
  const WinogradConv conv{s.N, s.K / s.G, s.C / s.G, s.P, s.Q, s.H, s.W, last - s.pad_top, last - s.pad_left};
  const Strides& w = weight.stride;
  const GatherWeight<const float> turned{weight.at(0, 0, last, last), conv.C * w.n, w.c, w.n, -w.h, -w.w};
  return winograd_conv2d(s.G, conv, grad_output, turned, bias, false, grad_input);
}

bool winograd_conv2d_backward_weight(const Conv2dShape& s, View<const float> input, View<const float> grad_output,
                                     View<float> grad_weight) {
  const WinogradConv2dKernels& kernels = cpu_kernels().winograd_conv2d;
  WinogradPlan plan;
  const WinogradConv conv = forward_of(s);
  if (!is_winograd(s) || !kernels.weight_plan(conv, &plan)) return false;
  const Strides& w = grad_weight.stride;
  const ChunkMemory memory(plan);
  Workspace workspace(Workspace::needed<float>(plan.packed_weight));
  float* sums = workspace.take<float>(plan.packed_weight);
  Finite finite;
  for (int64_t g = 0; g < s.G && finite; ++g) {
    const WinogradWeightJob job{conv, plan, {grad_weight.data + g * conv.K * w.n, 0, w.n, w.c, w.h, w.w}};
    View<const float> x = input, dy = grad_output;
    x.data += g * conv.C * x.stride.c;
    dy.data += g * conv.K * dy.stride.c;
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      const int64_t source_tasks = strips_of(plan, chunk) * plan.source_tasks;
      parallel_tasks(source_tasks + strips_of(plan, chunk) * plan.product_tasks, [&](int64_t task) {
        Workspace scratch(Workspace::needed<float>(plan.scratch_floats));
        float* staged = scratch.take<float>(plan.scratch_floats);
        if (task < source_tasks) {
          kernels.transform_source(conv, plan, x, chunk, task, memory.source, staged);
        } else {
          kernels.transform_gradient(conv, plan, dy, chunk, task - source_tasks, memory.product, staged);
        }
      });
      parallel_tasks(plan.multiply_tasks, [&](int64_t task) {
        Workspace scratch(Workspace::needed<float>(plan.multiply_floats));
        finite.also(kernels.multiply_gradient(job, chunk, task, memory.source, memory.product, sums,
                                              scratch.take<float>(plan.multiply_floats)));
      });
    }
    if (plan.chunks > 1)
      parallel_tasks(plan.weight_panels, [&](int64_t panel) { finite.also(kernels.finish_weight(job, panel, sums)); });
  }
  return static_cast<bool>(finite);
}

}  // namespace cnnfast
