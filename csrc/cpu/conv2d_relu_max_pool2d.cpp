// conv2d_relu_max_pool2d on the CPU: the direct forward and the pool-sparse backward of small float32 shapes.
#include "ops/conv2d_relu_max_pool2d.h"

#include <atomic>
#include <cstring>

#include "cpu/conv2d_launch.h"
#include "cpu/dispatch.h"
#include "cpu/guard.h"
#include "cpu/max_pool2d.h"
#include "cpu/parallel.h"
#include "cpu/relu.h"
#include "cpu/winograd_conv2d.h"
#include "cpu/workspace.h"

namespace cnnfast {

// Channels from which on F(4x4, 3x3) is ahead of F(2x2, 3x3), which keeps everything in registers and L1 (measured:
// docs/lab-notes.md).
constexpr int64_t kTileChannels = 32;

// Whether the windows are those that F(4x4, 3x3) pools in its output transform.
static bool pools_tiles(const Conv2dShape& conv, const Pool2dShape& pool) {
  return pool.R == kWinogradPool && pool.S == kWinogradPool && pool.stride_h == kWinogradPool &&
         pool.stride_w == kWinogradPool && pool.pad_h == 0 && pool.pad_w == 0 && pool.dilation_h == 1 &&
         pool.dilation_w == 1 && pool.P == conv.P / kWinogradPool && pool.Q == conv.Q / kWinogradPool;
}

// `code` is null in inference; only then may it be Winograd, whose rounding could let another element win.
static bool fused_forward(Cpu, const Conv2dShape& conv, const Pool2dShape& pool, View<const float> input,
                          View<const float> weight, const float* bias, View<float> output, View<uint8_t> code) {
  const ConvReluMaxPool2dKernels& kernels = cpu_kernels().conv2d_relu_max_pool2d;
  const bool infers = code.data == nullptr;
  if (infers && conv.C >= kTileChannels && pools_tiles(conv, pool) &&
      winograd_conv2d_forward(conv, input, weight, bias, Activation::relu, kWinogradPool, output))
    return true;
  DirectPlan plan;
  if (!kernels.plan(conv, pool, infers && winograd_enabled(), &plan)) return false;
  Workspace workspace(Workspace::needed<float>(plan.packed_weight));
  float* packed = workspace.take<float>(plan.packed_weight);
  kernels.pack_weight(conv, plan, weight, bias, packed);
  const DirectForward job{conv, pool, plan, input, output, code, weight, bias, packed};
  parallel_tasks(conv.N * plan.bands, [&](int64_t task) {
    Workspace scratch(Workspace::needed<char>(plan.workspace_bytes));
    kernels.forward(job, task / plan.bands, task % plan.bands, scratch.take<char>(plan.workspace_bytes));
  });
  return true;
}

static bool takes_pool_sparse(Cpu, const Conv2dShape& conv, const Pool2dShape& pool, bool /*want_input*/) {
  return cpu_kernels().conv2d_relu_max_pool2d.sparse(conv, pool);
}

// Images [N * i / slices, N * (i + 1) / slices) of slice i.
static int64_t slice_begin(int64_t N, int64_t i, int64_t slices) { return N * i / slices; }

// grad_weight and grad_bias (data is null where not wanted) from the partial sums of the slices, `slice_size` floats
// each, added in the order of the slices, whoever computed them. Clobbers the first.
static void sum_slices(const Conv2dShape& conv, float* partial, int64_t slices, int64_t slice_size, int64_t row,
                       View<float> grad_weight, float* grad_bias) {
  const int64_t K = conv.K, C = conv.C, R = conv.R, S = conv.S;
  const auto add = [&](int64_t begin, int64_t end) {
    for (int64_t slice = 1; slice < slices; ++slice)
      for (int64_t i = begin; i < end; ++i) partial[i] += partial[slice * slice_size + i];
  };
  const int64_t kGrain = 1 << 13;  // additions worth a task
  parallel_ranges(K, max<int64_t>(1, kGrain / (slices * R * row)), [&](int64_t begin, int64_t end) {
    add(begin * R * row, end * R * row);
    if (grad_weight.data == nullptr) return;
    for (int64_t k = begin; k < end; ++k)
      for (int64_t c = 0; c < C; ++c)
        for (int64_t r = 0; r < R; ++r)
          for (int64_t s = 0; s < S; ++s) *grad_weight.at(k, c, r, s) = partial[(k * R + r) * row + s * C + c];
  });
  if (grad_bias == nullptr) return;
  add(K * R * row, slice_size);
  for (int64_t k = 0; k < K; ++k) grad_bias[k] = partial[K * R * row + k];
}

// What is null is not wanted.
static void pool_sparse_backward(Cpu, const Conv2dShape& conv, const Pool2dShape& pool, View<const float> grad_output,
                                 View<const uint8_t> code, View<const float> input, View<const float> weight,
                                 View<float> grad_input, View<float> grad_weight, float* grad_bias) {
  const ConvReluMaxPool2dKernels& kernels = cpu_kernels().conv2d_relu_max_pool2d;
  const int64_t K = conv.K, C = conv.C, R = conv.R, S = conv.S, row = kernels.sparse_row(conv);
  const int64_t weight_size = K * R * row, slices = reduction_slices(max<int64_t>(conv.N, 1), weight_size * 4);
  const int64_t slice_size = weight_size + K;
  const bool want_input = grad_input.data != nullptr, want_weight = grad_weight.data != nullptr || grad_bias != nullptr;

  Workspace workspace(Workspace::needed<float>(weight_size) + Workspace::needed<float>(slices * slice_size));
  float* packed = workspace.take<float>(weight_size);
  if (want_input) {
    for (int64_t i = 0; i < weight_size; ++i) packed[i] = 0;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t r = 0; r < R; ++r)
        for (int64_t s = 0; s < S; ++s)
          for (int64_t c = 0; c < C; ++c) packed[(k * R + r) * row + s * C + c] = *weight.at(k, c, r, s);
  }
  float* partial = workspace.take<float>(slices * slice_size);
  const PoolSparseBackward job{conv, pool, grad_output, code, input, grad_input, packed, want_weight};

  const int64_t task_bytes = kernels.sparse_workspace_bytes(conv, pool);
  std::atomic<bool> inside{true};
  parallel_tasks(slices, [&](int64_t slice) {
    Workspace scratch(Workspace::needed<char>(task_bytes));
    float* sums = partial + slice * slice_size;
    if (want_weight) std::memset(sums, 0, static_cast<size_t>(slice_size) * sizeof(float));
    if (!kernels.backward(job, slice_begin(conv.N, slice, slices), slice_begin(conv.N, slice + 1, slices), sums,
                          sums + weight_size, scratch.take<char>(task_bytes)))
      inside = false;
  });
  CNNFAST_CHECK(inside, kFusedBackward, ": every code must be ", int{kClipped}, " or name a winner inside the ", conv.P,
                "x", conv.Q, " map, but got one outside of it");
  if (want_weight) sum_slices(conv, partial, slices, slice_size, row, grad_weight, grad_bias);
}

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv2d_relu_max_pool2d_forward", TORCH_BOX(&fused_forward_op<Cpu>));
  m.impl("conv2d_relu_max_pool2d", TORCH_BOX(&fused_op<Cpu>));
  m.impl("conv2d_relu_max_pool2d_backward", TORCH_BOX(&fused_backward_op<Cpu>));
}

}  // namespace cnnfast
