// The fused convolution + bias + ReLU + max-pool of every instruction set: the direct and the Winograd forward and the
// pool-sparse backward against plain loops. Operands are small integers, which all of them sum without rounding.
#include "cpu/workspace.h"
#include "kernels_testing.h"

using namespace cnnfast;

namespace {

struct Geometry {
  int64_t N, C, H, W, K, R, S;
  int64_t stride, pad_top, pad_bottom, pad_left, pad_right;
  int64_t pool, pool_stride, pool_pad;
  bool ceil_mode;

  Conv2dShape conv() const {
    const int64_t P = conv_output_size(H, R, stride, pad_top + pad_bottom, 1),
                  Q = conv_output_size(W, S, stride, pad_left + pad_right, 1);
    return {N, C, H, W, K, R, S, P, Q, 1, stride, stride, pad_top, pad_bottom, pad_left, pad_right, 1, 1};
  }
  Pool2dShape pooled() const {
    const Conv2dShape c = conv();
    const int64_t P = pool_output_size(c.P, pool, pool_stride, pool_pad, 1, ceil_mode),
                  Q = pool_output_size(c.Q, pool, pool_stride, pool_pad, 1, ceil_mode);
    return {N, K, c.P, c.Q, pool, pool, P, Q, pool_stride, pool_stride, pool_pad, pool_pad, 1, 1};
  }
};

// 2x2 windows apart: what the direct forward takes.
constexpr Geometry kDirect[] = {
    {2, 1, 28, 28, 12, 3, 3, 1, 1, 1, 1, 1, 2, 2, 0, false},   // the lecture's first block
    {2, 12, 14, 14, 24, 3, 3, 1, 1, 1, 1, 1, 2, 2, 0, false},  // and its second
    {1, 1, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 0, false},
    {3, 3, 9, 13, 5, 3, 3, 1, 1, 1, 1, 1, 2, 2, 0, false},   // a row and a column that no window takes
    {1, 9, 8, 38, 17, 3, 3, 1, 1, 1, 1, 1, 2, 2, 0, false},  // tails of columns and channels
    {1, 2, 11, 37, 3, 5, 2, 1, 0, 3, 1, 0, 2, 2, 0, false},  // padding on one side
    {2, 4, 15, 12, 8, 3, 3, 2, 1, 1, 1, 1, 2, 2, 0, false},  // a strided convolution
    {1, 3, 90, 70, 4, 3, 3, 1, 1, 1, 1, 1, 2, 2, 0, false},  // more than one band
    {0, 1, 8, 8, 4, 3, 3, 1, 1, 1, 1, 1, 2, 2, 0, false},    // no images
};
// Windows that overlap, reach into a padding or hang over the edge.
constexpr Geometry kOverlapping[] = {
    {2, 3, 9, 8, 9, 3, 3, 1, 1, 1, 1, 1, 3, 2, 1, false},    // columns and channels that fill no register
    {1, 2, 7, 10, 17, 3, 2, 1, 0, 1, 2, 0, 2, 1, 0, false},  // padding on one side
    {1, 4, 10, 9, 8, 3, 3, 2, 1, 1, 1, 1, 2, 2, 0, true},    // a strided convolution, a window over the edge
    {2, 16, 15, 15, 32, 3, 3, 1, 1, 1, 1, 1, 3, 2, 0, false},
    {1, 3, 90, 70, 40, 5, 5, 1, 2, 2, 2, 2, 3, 2, 1, false},  // more than one band
    {0, 1, 8, 8, 8, 3, 3, 1, 1, 1, 1, 1, 3, 2, 1, false},     // no images
};
// Windows between which rows of the map are left out.
constexpr Geometry kApart[] = {
    {2, 5, 8, 9, 8, 2, 3, 1, 1, 0, 1, 1, 2, 3, 0, true},
};

// The operands of one call, and what plain loops make of them.
struct Example {
  Example(const Geometry& geometry, Layout layout)
      : conv(geometry.conv()),
        pool(geometry.pooled()),
        input(conv.N, conv.C, conv.H, conv.W, layout),
        weight(conv.K, conv.C, conv.R, conv.S, layout),
        output(conv.N, conv.K, pool.P, pool.Q, layout),
        grad_output(conv.N, conv.K, pool.P, pool.Q, layout),
        grad_input(conv.N, conv.C, conv.H, conv.W, layout),
        grad_weight(conv.K, conv.C, conv.R, conv.S, Layout::kNchw),
        code(conv.N, conv.K, pool.P, pool.Q, layout),
        bias(conv.K),
        grad_bias(conv.K) {
    Random random(17);
    for (Buffer<float>* buffer : {&input.data, &weight.data, &grad_output.data, &bias}) fill(*buffer, random);
    for (Buffer<float>* buffer : {&grad_input.data, &grad_weight.data, &grad_bias})
      for (int64_t i = 0; i < buffer->size(); ++i) buffer->set(i, 0);
    for_each_element(output, [&](int64_t n, int64_t k, int64_t p, int64_t q) { pool_window(n, k, p, q); });
  }

  // The convolution's output at (n, k, y, x).
  double at(int64_t n, int64_t k, int64_t y, int64_t x) const {
    double sum = bias[k];
    for_each_tap(y, x, [&](int64_t c, int64_t r, int64_t s, int64_t h, int64_t w) {
      sum += input.at(n, c, h, w) * weight.at(k, c, r, s);
    });
    return sum;
  }

  template <class Body>
  void for_each_tap(int64_t y, int64_t x, const Body& body) const {
    for (int64_t c = 0; c < conv.C; ++c)
      for (int64_t r = 0; r < conv.R; ++r)
        for (int64_t s = 0; s < conv.S; ++s) {
          const int64_t h = y * conv.stride_h - conv.pad_top + r, w = x * conv.stride_w - conv.pad_left + s;
          if (h >= 0 && h < conv.H && w >= 0 && w < conv.W) body(c, r, s, h, w);
        }
  }

  void pool_window(int64_t n, int64_t k, int64_t p, int64_t q) {
    double best = 0;
    int64_t winner = kClipped, best_y = 0, best_x = 0;
    for (int64_t r = 0; r < pool.R; ++r)
      for (int64_t s = 0; s < pool.S; ++s) {
        const int64_t y = p * pool.stride_h - pool.pad_h + r, x = q * pool.stride_w - pool.pad_w + s;
        if (y < 0 || y >= conv.P || x < 0 || x >= conv.Q) continue;
        const double value = at(n, k, y, x);
        if (value > best) best = value, winner = r * pool.S + s, best_y = y, best_x = x;
      }
    output.data.set(output.offset(n, k, p, q), best);
    *code.view().at(n, k, p, q) = static_cast<uint8_t>(winner);
    if (winner == kClipped) return;
    const double g = grad_output.at(n, k, p, q);
    grad_bias.set(k, grad_bias[k] + g);
    for_each_tap(best_y, best_x, [&](int64_t c, int64_t r, int64_t s, int64_t h, int64_t w) {
      const int64_t x = grad_input.offset(n, c, h, w), f = grad_weight.offset(k, c, r, s);
      grad_input.data.set(x, grad_input.data[x] + g * weight.at(k, c, r, s));
      grad_weight.data.set(f, grad_weight.data[f] + g * input.at(n, c, h, w));
    });
  }

  Conv2dShape conv;
  Pool2dShape pool;
  Image<float> input, weight, output, grad_output, grad_input, grad_weight;
  Image<uint8_t> code;
  Buffer<float> bias, grad_bias;
};

void check_forward(const ConvReluMaxPool2dKernels& kernels, const Example& example, Layout layout, bool with_code) {
  DirectPlan plan;
  const bool taken = kernels.plan(example.conv, example.pool, !with_code, &plan);
  CHECK(taken);
  if (!taken) return;
  Image<float> output(example.conv.N, example.conv.K, example.pool.P, example.pool.Q, layout);
  Image<uint8_t> code(example.conv.N, example.conv.K, example.pool.P, example.pool.Q, layout);
  Workspace packed(Workspace::needed<float>(plan.packed_weight));
  DirectForward job{example.conv,          example.pool,        plan,
                    example.input.view(),  output.view(),       with_code ? code.view() : View<uint8_t>{},
                    example.weight.view(), example.bias.data(), packed.take<float>(plan.packed_weight)};
  kernels.pack_weight(example.conv, plan, job.weight, job.bias, const_cast<float*>(job.packed_weight));
  for (int64_t task = 0; task < example.conv.N * plan.bands; ++task) {
    Workspace scratch(Workspace::needed<char>(plan.workspace_bytes));
    kernels.forward(job, task / plan.bands, task % plan.bands, scratch.take<char>(plan.workspace_bytes));
  }
  for_each_element(output, [&](int64_t n, int64_t k, int64_t p, int64_t q) {
    CHECK_EQ(output.at(n, k, p, q), example.output.at(n, k, p, q));
    if (with_code) CHECK_EQ(int{*code.view().at(n, k, p, q)}, int{*example.code.view().at(n, k, p, q)});
  });
}

// In two slices of the batch.
void check_backward(const ConvReluMaxPool2dKernels& kernels, const Example& example, Layout layout) {
  const Conv2dShape& conv = example.conv;
  const bool taken = kernels.sparse(conv, example.pool);
  CHECK(taken);
  if (!taken) return;
  const int64_t row = kernels.sparse_row(conv), weight_size = conv.K * conv.R * row;
  const int64_t scratch_bytes = kernels.sparse_workspace_bytes(conv, example.pool);
  Workspace workspace(2 * Workspace::needed<float>(weight_size) + Workspace::needed<float>(conv.K) +
                      Workspace::needed<char>(scratch_bytes));
  float *packed = workspace.take<float>(weight_size), *grad_weight = workspace.take<float>(weight_size),
        *grad_bias = workspace.take<float>(conv.K);
  char* scratch = workspace.take<char>(scratch_bytes);
  std::memset(packed, 0, static_cast<size_t>(weight_size) * sizeof(float));
  std::memset(grad_weight, 0, static_cast<size_t>(weight_size) * sizeof(float));
  std::memset(grad_bias, 0, static_cast<size_t>(conv.K) * sizeof(float));
  const auto place = [&](int64_t k, int64_t c, int64_t r, int64_t s) {
    return (k * conv.R + r) * row + s * conv.C + c;
  };
  for_each_element(example.weight, [&](int64_t k, int64_t c, int64_t r, int64_t s) {
    packed[place(k, c, r, s)] = static_cast<float>(example.weight.at(k, c, r, s));
  });
  Image<float> grad_input(conv.N, conv.C, conv.H, conv.W, layout);
  const PoolSparseBackward job{
      conv,   example.pool, example.grad_output.view(), example.code.view(), example.input.view(), grad_input.view(),
      packed, true};
  in_two_pieces(
      conv.N, [&](int64_t begin, int64_t end) { kernels.backward(job, begin, end, grad_weight, grad_bias, scratch); });
  for_each_element(grad_input, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
    CHECK_EQ(grad_input.at(n, c, h, w), example.grad_input.at(n, c, h, w));
  });
  for_each_element(example.grad_weight, [&](int64_t k, int64_t c, int64_t r, int64_t s) {
    CHECK_EQ(static_cast<double>(grad_weight[place(k, c, r, s)]), example.grad_weight.at(k, c, r, s));
  });
  for (int64_t k = 0; k < conv.K; ++k) CHECK_EQ(static_cast<double>(grad_bias[k]), example.grad_bias[k]);
}

}  // namespace

TEST(direct_forward_and_pool_sparse_backward) {
  for (size_t i = 0; i < std::size(kDirect); ++i) {
    for (const Layout layout : kLayouts) {
      const Example example(kDirect[i], layout);
      for (const CpuKernels* kernels : runnable_kernels()) {
        WHERE(kernels->isa, " geometry ", i, " layout ", static_cast<int>(layout));
        check_forward(kernels->conv2d_relu_max_pool2d, example, layout, true);
        check_forward(kernels->conv2d_relu_max_pool2d, example, layout, false);
        check_backward(kernels->conv2d_relu_max_pool2d, example, layout);
      }
    }
  }
}

TEST(other_windows) {
  for (size_t i = 0; i < std::size(kOverlapping); ++i) {
    for (const Layout layout : kLayouts) {
      const Example example(kOverlapping[i], layout);
      for (const CpuKernels* kernels : runnable_kernels()) {
        WHERE(kernels->isa, " geometry ", i, " layout ", static_cast<int>(layout));
        check_forward(kernels->conv2d_relu_max_pool2d, example, layout, true);
        check_forward(kernels->conv2d_relu_max_pool2d, example, layout, false);
        check_backward(kernels->conv2d_relu_max_pool2d, example, layout);
      }
    }
  }
}

TEST(windows_apart_are_left_to_the_general_forward) {
  DirectPlan plan;
  for (const Geometry& geometry : kApart) {
    for (const Layout layout : kLayouts) {
      const Example example(geometry, layout);
      for (const CpuKernels* kernels : runnable_kernels()) {
        WHERE(kernels->isa, " layout ", static_cast<int>(layout));
        CHECK(!kernels->conv2d_relu_max_pool2d.plan(example.conv, example.pool, false, &plan));
        check_backward(kernels->conv2d_relu_max_pool2d, example, layout);
      }
    }
  }
}
