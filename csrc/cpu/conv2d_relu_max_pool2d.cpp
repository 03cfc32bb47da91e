// conv2d_relu_max_pool2d_forward and _backward on the CPU.
//
// Small float32 shapes take the direct forward and the pool-sparse backward; everything else is composed of the general
// convolution and the general ReLU + max-pool with the same code.
#include "cpu/conv2d_relu_max_pool2d.h"

#include <atomic>
#include <cstring>
#include <tuple>

#include "checks.h"
#include "cpu/conv2d_launch.h"
#include "cpu/dispatch.h"
#include "cpu/max_pool2d_launch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

constexpr const char* kOp = "conv2d_relu_max_pool2d";
constexpr const char* kBackward = "conv2d_relu_max_pool2d_backward";
constexpr size_t kOptions = Conv2dOptions::kCount + MaxPool2dOptions::kCount;

Pool2dShape pool_shape(const Conv2dShape& conv, const MaxPool2dOptions& options) {
  const Pool2dShape pool = pool2d_shape(kOp, conv.N, conv.K, conv.P, conv.Q, options);
  CNNFAST_CHECK(pool.R * pool.S <= kMaxCodedWindow, kOp, ": the pool window must have at most ", kMaxCodedWindow,
                " elements, but got pool_kernel_size=", show(options.kernel_size));
  return pool;
}

View<const float> const_view(const Tensor& tensor) { return view_of<const float>(tensor); }

void direct_forward(const Conv2dShape& conv, const Pool2dShape& pool, const DirectPlan& plan, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& output, const Tensor* code) {
  const ConvReluMaxPool2dKernels& kernels = cpu_kernels().conv2d_relu_max_pool2d;
  Workspace packed(Workspace::needed<float>(plan.packed_weight));
  DirectForward job{conv,    pool,   plan, const_view(input), view_of<float>(output), {}, const_view(weight),
                    nullptr, nullptr};
  if (code != nullptr) job.code = view_of<uint8_t>(*code);
  float* packed_weight = packed.take<float>(plan.packed_weight);
  // A bias is a vector of any stride; a contiguous copy of K floats costs nothing.
  std::vector<float> bias_values;
  if (bias.has_value()) {
    bias_values.resize(static_cast<size_t>(conv.K));
    const float* values = data_of<const float>(*bias);
    const int64_t step = bias->stride(0);
    for (int64_t k = 0; k < conv.K; ++k) bias_values[static_cast<size_t>(k)] = values[k * step];
  }
  job.bias = bias.has_value() ? bias_values.data() : nullptr;
  kernels.pack_weight(conv, plan, job.weight, job.bias, packed_weight);
  job.packed_weight = packed_weight;
  parallel_tasks(conv.N * plan.bands, [&](int64_t task) {
    Workspace workspace(Workspace::needed<char>(plan.workspace_bytes));
    kernels.forward(job, task / plan.bands, task % plan.bands, workspace.take<char>(plan.workspace_bytes));
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                   const Conv2dOptions& conv_options, const MaxPool2dOptions& pool_options,
                                   bool return_code) {
  const Conv2dShape conv = conv2d_shape(kOp, input, weight, bias, conv_options);
  const Pool2dShape pool = pool_shape(conv, pool_options);

  DirectPlan plan;
  if (input.scalar_type() == ScalarType::Float &&
      cpu_kernels().conv2d_relu_max_pool2d.plan(conv, pool, return_code, &plan)) {
    // max_pool2d's rule: of one image without batch, the result is contiguous.
    const bool channels_last = input.dim() == 4 && conv_channels_last(input, weight);
    const std::array<int64_t, 4> size = {conv.N, conv.K, pool.P, pool.Q};
    Tensor output = empty(input, size, input.dim(), channels_last);
    Tensor code = return_code ? empty(input, size, input.dim(), channels_last, ScalarType::Byte)
                              : empty_vector(input, 0, ScalarType::Byte);
    direct_forward(conv, pool, plan, input, weight, bias, output, return_code ? &code : nullptr);
    return {output, code};
  }
  const Tensor map = conv2d_forward(input, weight, bias, conv_options, /*relu=*/false);
  return relu_max_pool2d_forward(map, pool, return_code);
}

// Images [N * i / slices, N * (i + 1) / slices) of slice i.
int64_t slice_begin(int64_t N, int64_t i, int64_t slices) { return N * i / slices; }

// grad_weight and grad_bias (data is null where not wanted) from the partial sums of the slices, `slice_size` floats
// each, added in the order of the slices, whoever computed them. Clobbers the first.
void sum_slices(const Conv2dShape& conv, float* partial, int64_t slices, int64_t slice_size, int64_t row,
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

std::tuple<Tensor, Tensor, Tensor> pool_sparse_backward(const Conv2dShape& conv, const Pool2dShape& pool,
                                                        const Tensor& grad_output, const Tensor& code,
                                                        const Tensor& input, const Tensor& weight,
                                                        const std::vector<bool>& output_mask) {
  const ConvReluMaxPool2dKernels& kernels = cpu_kernels().conv2d_relu_max_pool2d;
  const int64_t K = conv.K, C = conv.C, R = conv.R, S = conv.S, row = kernels.sparse_row(conv);
  const int64_t weight_size = K * R * row, slices = reduction_slices(max<int64_t>(conv.N, 1), weight_size * 4);
  const bool want_weight = output_mask[1] || output_mask[2];

  PoolSparseBackward job{
      conv, pool, const_view(grad_output), view_of<const uint8_t>(code), const_view(input), {}, nullptr, want_weight};
  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) {
    grad_input = empty(input, {conv.N, C, conv.H, conv.W}, input.dim(), conv_channels_last(input, weight));
    job.grad_input = view_of<float>(grad_input);
  }

  const int64_t slice_size = weight_size + K;
  Workspace workspace(Workspace::needed<float>(weight_size) + Workspace::needed<float>(slices * slice_size));
  if (output_mask[0]) {
    float* packed = workspace.take<float>(weight_size);
    const View<const float> w = const_view(weight);
    for (int64_t i = 0; i < weight_size; ++i) packed[i] = 0;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t r = 0; r < R; ++r)
        for (int64_t s = 0; s < S; ++s)
          for (int64_t c = 0; c < C; ++c) packed[(k * R + r) * row + s * C + c] = *w.at(k, c, r, s);
    job.packed_weight = packed;
  }
  float* partial = workspace.take<float>(slices * slice_size);

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
  CNNFAST_CHECK(inside, kBackward, ": every code must be ", int{kClipped}, " or name a winner inside the ", conv.P, "x",
                conv.Q, " map, but got one outside of it");

  if (output_mask[1]) grad_weight = empty(weight, {K, C, R, S}, 4, conv_channels_last(input, weight));
  if (output_mask[2]) grad_bias = empty_vector(weight, K);
  if (want_weight)
    sum_slices(conv, partial, slices, slice_size, row, output_mask[1] ? view_of<float>(grad_weight) : View<float>{},
               output_mask[2] ? data_of<float>(grad_bias) : nullptr);
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> conv2d_relu_max_pool2d_forward(const Tensor& input, const Tensor& weight,
                                                          const std::optional<Tensor>& bias, const IntList& options,
                                                          bool return_code) {
  check_options(kOp, options, kOptions);
  return forward(input, weight, bias, conv2d_options(options), fused_pool_options(options), return_code);
}

std::tuple<Tensor, Tensor, Tensor> conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& code,
                                                                   const Tensor& input, const Tensor& weight,
                                                                   const IntList& options,
                                                                   const std::vector<bool>& output_mask) {
  check_options(kBackward, options, kOptions);
  const Conv2dOptions conv_options = conv2d_options(options);
  const Conv2dShape conv = conv2d_shape(kBackward, input, weight, std::nullopt, conv_options);
  const Pool2dShape pool = pool_shape(conv, fused_pool_options(options));
  check_grad_output(kBackward, grad_output, input, {conv.N, conv.K, pool.P, pool.Q});
  CNNFAST_CHECK(code.scalar_type() == ScalarType::Byte, kBackward,
                ": code must have dtype uint8, but got code.dtype=", code.scalar_type());
  CNNFAST_CHECK(same_size(code, grad_output), kBackward,
                ": code must have the shape of grad_output, but got code.shape=", show_size(code),
                ", grad_output.shape=", show_size(grad_output));
  check_output_mask(kBackward, output_mask);

  if (input.scalar_type() == ScalarType::Float && cpu_kernels().conv2d_relu_max_pool2d.sparse(conv, pool))
    return pool_sparse_backward(conv, pool, grad_output, code, input, weight, output_mask);

  const Tensor grad_map = relu_max_pool2d_backward(grad_output, code, pool, suggests_channels_last(code));
  return conv2d_backward(grad_map, input, weight, conv_options, output_mask);
}

std::tuple<Tensor, Tensor> conv2d_relu_max_pool2d(const Tensor& input, const Tensor& weight,
                                                  const std::optional<Tensor>& bias, const IntList& stride,
                                                  const IntList& padding, const IntList& dilation, int64_t groups,
                                                  const IntList& pool_kernel_size, const IntList& pool_stride,
                                                  const IntList& pool_padding, const IntList& pool_dilation,
                                                  bool ceil_mode) {
  return forward(input, weight, bias, {stride, padding, dilation, groups},
                 {pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode}, /*return_code=*/true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv2d_relu_max_pool2d_forward", TORCH_BOX(&conv2d_relu_max_pool2d_forward));
  m.impl("conv2d_relu_max_pool2d", TORCH_BOX(&conv2d_relu_max_pool2d));
  m.impl("conv2d_relu_max_pool2d_backward", TORCH_BOX(&conv2d_relu_max_pool2d_backward));
}

}  // namespace cnnfast
