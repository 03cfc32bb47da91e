// The launcher side of algorithm `winograd`.
#include "cpu/winograd_conv2d.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

std::atomic<bool>& enabled() {
  static std::atomic<bool> value = [] {
    const char* asked = std::getenv("CNNFAST_WINOGRAD");
    if (asked == nullptr || *asked == '\0') return true;
    if (std::strcmp(asked, "0") != 0 && std::strcmp(asked, "1") != 0)
      std::fprintf(stderr, "cnnfast: CNNFAST_WINOGRAD must be 0 or 1, but got %s; ignored\n", asked);
    return std::strcmp(asked, "0") != 0;
  }();
  return value;
}

// Calls task(i, memory) for each task of a plan; whether all were finite.
bool run_tasks(const WinogradPlan& plan, const auto& task) {
  std::atomic<bool> finite = true;
  parallel_tasks(plan.tasks, [&](int64_t i) {
    Workspace workspace(Workspace::needed<float>(plan.task_floats));
    if (!task(i, workspace.take<float>(plan.task_floats))) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load(std::memory_order_relaxed);
}

// One convolution per group.
bool winograd_conv2d(int64_t groups, const WinogradConv& conv, View<const float> source,
                     const GatherWeight<const float>& weight, const float* bias, const Epilogue<float>& epilogue,
                     int pool, View<float> output) {
  const WinogradConv2dKernels& kernels = cpu_kernels().winograd_conv2d;
  WinogradPlan plan;
  if (!kernels.plan(conv, thread_count(), &plan)) return false;
  Workspace workspace(Workspace::needed<float>(plan.shared_floats));
  float* packed = workspace.take<float>(plan.shared_floats);
  bool finite = true;
  for (int64_t g = 0; g < groups && finite; ++g) {
    WinogradJob job{conv, plan,  source, weight, packed, bias, epilogue.from(g * conv.K * output.stride.c),
                    pool, output};
    job.source.data += g * conv.C * source.stride.c;
    job.output.data += g * conv.K * output.stride.c;
    job.weight.data += g * weight.group;
    if (bias != nullptr) job.bias += g * conv.K;
    if (plan.shared_floats > 0)
      parallel_tasks(plan.panels, [&](int64_t panel) { kernels.pack_weight(conv, job.weight, packed, panel); });
    finite = run_tasks(plan, [&](int64_t task, float* memory) { return kernels.forward(job, task, memory); });
  }
  return finite;
}

bool is_winograd(const Conv2dShape& s) {
  return winograd_enabled() && s.R == kWinogradTaps && s.S == kWinogradTaps && s.stride_h == 1 && s.stride_w == 1 &&
         s.dilation_h == 1 && s.dilation_w == 1;
}

bool dense_taps(const Strides& weight) { return weight.w == 1 && weight.h == kWinogradTaps; }

constexpr WinogradRival kSums = WinogradRival::sums;

WinogradConv forward_of(const Conv2dShape& s, const Strides& weight, WinogradRival rival = kSums) {
  return {s.N, s.C / s.G, s.K / s.G, s.H, s.W, s.P, s.Q, s.pad_top, s.pad_left, dense_taps(weight), rival};
}

WinogradConv backward_input_of(const Conv2dShape& s, const Strides& weight) {
  const int64_t last = kWinogradTaps - 1;
  return {s.N,  s.K / s.G, s.C / s.G, s.P, s.Q, s.H, s.W, last - s.pad_top, last - s.pad_left, dense_taps(weight),
          kSums};
}

}  // namespace

bool winograd_enabled() { return enabled().load(std::memory_order_relaxed); }
bool set_winograd(bool value) { return enabled().exchange(value, std::memory_order_relaxed); }

bool winograd_takes(const Conv2dShape& s, const Strides& weight, WinogradRival rival) {
  WinogradPlan plan;
  return is_winograd(s) && cpu_kernels().winograd_conv2d.plan(forward_of(s, weight, rival), thread_count(), &plan);
}

bool winograd_takes_backward_input(const Conv2dShape& s, const Strides& weight) {
  WinogradPlan plan;
  return is_winograd(s) && cpu_kernels().winograd_conv2d.plan(backward_input_of(s, weight), thread_count(), &plan);
}

bool winograd_takes_backward_weight(const Conv2dShape& s, const Strides& grad_weight) {
  WinogradPlan plan;
  return is_winograd(s) && cpu_kernels().winograd_conv2d.weight_plan(forward_of(s, grad_weight), thread_count(), &plan);
}

bool winograd_conv2d_forward(const Conv2dShape& s, View<const float> input, View<const float> weight, const float* bias,
                             const Epilogue<float>& epilogue, int pool, View<float> output, WinogradRival rival) {
  if (!is_winograd(s)) return false;
  const Strides& w = weight.stride;
  const WinogradConv conv = forward_of(s, w, rival);
  return winograd_conv2d(s.G, conv, input, {weight.data, conv.K * w.n, w.n, w.c, w.h, w.w}, bias, epilogue, pool,
                         output);
}

// The convolution of grad_output with the kernels turned by half a turn.
bool winograd_conv2d_backward_input(const Conv2dShape& s, View<const float> grad_output, View<const float> weight,
                                    const float* bias, View<float> grad_input) {
  if (!is_winograd(s)) return false;
  const int64_t last = kWinogradTaps - 1;
  const Strides& w = weight.stride;
  const WinogradConv conv = backward_input_of(s, w);
  const GatherWeight<const float> turned{weight.at(0, 0, last, last), conv.C * w.n, w.c, w.n, -w.h, -w.w};
  return winograd_conv2d(s.G, conv, grad_output, turned, bias, Activation::none, 1, grad_input);
}

bool winograd_conv2d_backward_weight(const Conv2dShape& s, View<const float> input, View<const float> grad_output,
                                     View<float> grad_weight) {
  const WinogradConv2dKernels& kernels = cpu_kernels().winograd_conv2d;
  WinogradPlan plan;
  const Strides& w = grad_weight.stride;
  const WinogradConv conv = forward_of(s, w);
  if (!is_winograd(s) || !kernels.weight_plan(conv, thread_count(), &plan)) return false;
  Workspace workspace(Workspace::needed<float>(plan.shared_floats));
  float* sums = workspace.take<float>(plan.shared_floats);
  std::atomic<bool> finite = true;
  for (int64_t g = 0; g < s.G && finite; ++g) {
    WinogradWeightJob job{conv, plan, input, grad_output, {grad_weight.at(g * conv.K, 0, 0, 0), 0, w.n, w.c, w.h, w.w}};
    job.source.data += g * conv.C * input.stride.c;
    job.grad_output.data += g * conv.K * grad_output.stride.c;
    finite =
        run_tasks(plan, [&](int64_t task, float* memory) { return kernels.backward_weight(job, task, sums, memory); });
    if (plan.shared_floats > 0) {
      parallel_tasks(plan.panels, [&](int64_t panel) {
        if (!kernels.finish_weight(job, panel, sums)) finite.store(false, std::memory_order_relaxed);
      });
    }
  }
  return finite;
}

}  // namespace cnnfast
