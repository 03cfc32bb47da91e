// max_pool2d_forward and max_pool2d_backward on the CPU, and the pooling after ReLU of max_pool2d_launch.h.
#include "cpu/max_pool2d.h"

#include <atomic>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/max_pool2d_launch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// Elements of the output per task: large against the cost of starting one, small against the caches.
constexpr int64_t kGrain = 1 << 12;

constexpr const char* kForward = "max_pool2d";
constexpr const char* kBackward = "max_pool2d_backward";

template <class Stored, class T>
const MaxPool2dKernelsOf<T, Stored>& kernels_of() {
  const MaxPool2dKernels<T>& kernels = cpu_kernels().of<T>().max_pool2d;
  if constexpr (sizeof(Stored) == 1) {
    return kernels.relu;
  } else {
    return kernels.plain;
  }
}

template <class Stored>
constexpr ScalarType kStoredType = sizeof(Stored) == 1 ? ScalarType::Byte : ScalarType::Long;

template <class Stored>
std::tuple<Tensor, Tensor> forward(const Tensor& input, const Pool2dShape& s, bool return_winner) {
  const bool channels_last = suggests_channels_last(input);
  const Tensor output = empty(input, {s.N, s.C, s.P, s.Q}, input.dim(), channels_last);
  const Tensor winner = return_winner
                            ? empty(input, {s.N, s.C, s.P, s.Q}, input.dim(), channels_last, kStoredType<Stored>)
                            : empty_vector(input, 0, kStoredType<Stored>);
  dispatch_dtype(kForward, input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    MaxPool2dForward<T, Stored> args{s, channels_last, view_of<const T>(input), view_of<T>(output), {}};
    if (return_winner) args.winner = view_of<Stored>(winner);
    const int64_t row = channels_last ? s.Q * s.C : s.Q;
    parallel_ranges(s.N * s.C * s.P * s.Q / row, ceil_div(kGrain, row),
                    [&](int64_t begin, int64_t end) { kernels_of<Stored, T>().forward(args, begin, end); });
  });
  return {output, winner};
}

template <class Stored>
Tensor backward(const Tensor& grad_output, const Tensor& winner, const Pool2dShape& s, bool channels_last) {
  const Tensor grad_input = empty(grad_output, {s.N, s.C, s.H, s.W}, grad_output.dim(), channels_last);
  std::atomic<bool> inside{true};
  dispatch_dtype(kBackward, grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const MaxPool2dBackward<T, Stored> args{s, channels_last, view_of<const T>(grad_output),
                                            view_of<const Stored>(winner), view_of<T>(grad_input)};
    const int64_t blocks = max_pool2d_backward_blocks(s, channels_last);
    const int64_t scratch = max_pool2d_backward_scratch<T>(s, channels_last);
    const int64_t block_outputs = ceil_div(s.C, blocks) * s.P * s.Q;
    parallel_ranges(s.N * blocks, ceil_div(kGrain, block_outputs), [&](int64_t begin, int64_t end) {
      Workspace workspace(Workspace::needed<Compute<T>>(scratch));
      if (!kernels_of<Stored, T>().backward(args, begin, end, workspace.take<Compute<T>>(scratch))) inside = false;
    });
  });
  CNNFAST_CHECK(inside, kBackward, ": every winner must lie in the H*W plane or be -1, but got one outside of ", s.H,
                "x", s.W);
  return grad_input;
}

std::tuple<Tensor, Tensor> max_pool2d_forward(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                                              const IntList& padding, const IntList& dilation, bool ceil_mode,
                                              bool return_indices) {
  const Pool2dShape s = pool2d_shape(kForward, input, {kernel_size, stride, padding, dilation, ceil_mode});
  return forward<int64_t>(input, s, return_indices);
}

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                                      const IntList& padding, const IntList& dilation, bool ceil_mode) {
  return max_pool2d_forward(input, kernel_size, stride, padding, dilation, ceil_mode, true);
}

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const IntList& input_size) {
  check_list(kBackward, "input_size", input_size, 2, 1);
  check_image(kBackward, "grad_output", grad_output);
  CNNFAST_CHECK(indices.scalar_type() == ScalarType::Long, kBackward,
                ": indices must have dtype int64, but got indices.dtype=", indices.scalar_type());
  CNNFAST_CHECK(same_size(indices, grad_output), kBackward,
                ": indices must have the shape of grad_output, but got indices.shape=", show_size(indices),
                ", grad_output.shape=", show_size(grad_output));
  Pool2dShape s{};
  s.N = batch_of(grad_output), s.C = size_from_end(grad_output, 3);
  s.P = size_from_end(grad_output, 2), s.Q = size_from_end(grad_output, 1);
  s.H = input_size[0], s.W = input_size[1];
  CNNFAST_CHECK(
      s.C > 0 && s.P > 0 && s.Q > 0, kBackward,
      ": grad_output must not be empty but for its batch, but got grad_output.shape=", show_size(grad_output));
  return backward<int64_t>(grad_output, indices, s, suggests_channels_last(indices));
}

}  // namespace

std::tuple<Tensor, Tensor> relu_max_pool2d_forward(const Tensor& map, const Pool2dShape& shape, bool return_code) {
  return forward<uint8_t>(map, shape, return_code);
}

Tensor relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& code, const Pool2dShape& shape,
                                bool channels_last) {
  return backward<uint8_t>(grad_output, code, shape, channels_last);
}

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("max_pool2d_forward", TORCH_BOX(&max_pool2d_forward));
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));
}

}  // namespace cnnfast
