// Winograd's convolution and its gradients, of every instruction set: small integers, which its error leaves nearest to
// the exact result, on memory that ends where the tensor does.
#include "cpu/winograd_conv2d.h"

#include <omp.h>

#include "kernels_testing.h"

using namespace cnnfast;

namespace {

constexpr Conv2dShape shape(int64_t N, int64_t C, int64_t H, int64_t W, int64_t K, int64_t G, int64_t pad_h,
                            int64_t pad_w) {
  return {N, C, H, W, K, 3, 3, H + 2 * pad_h - 2, W + 2 * pad_w - 2, G, 1, 1, pad_h, pad_h, pad_w, pad_w, 1, 1};
}

constexpr Conv2dShape kShapes[] = {
    shape(2, 24, 15, 18, 49, 1, 1, 1),   // tails of tiles and channels
    shape(2, 64, 10, 12, 64, 2, 0, 2),   // groups, lopsided padding
    shape(2, 32, 8, 72, 32, 1, 1, 1),    // strips inside the image, read in place in channels_last
    shape(2, 272, 12, 12, 40, 1, 1, 1),  // sums in two blocks of channels
    shape(26, 32, 12, 12, 17, 1, 1, 1),  // slices of the weight gradient
};

// Those that the cost model leaves to others, but for whoever has measured: forward.
constexpr Conv2dShape kUnpaid[] = {
    shape(2, 1, 5, 7, 3, 1, 1, 1),     // a first layer
    shape(1, 3, 9, 4, 20, 1, 0, 0),    // fewer channels than a register has lanes
    shape(3, 40, 3, 3, 8, 1, 1, 1),    // tiles larger than the image
    shape(2, 12, 6, 10, 12, 12, 1, 1)  // one channel a group
};

struct Example {
  Example(const Conv2dShape& s, Layout layout)
      : s(s),
        input(s.N, s.C, s.H, s.W, layout),
        weight(s.K, s.C / s.G, 3, 3, layout),
        output(s.N, s.K, s.P, s.Q, layout),
        bias(s.K) {
    Random random(5);
    for (Buffer<float>* buffer : {&input.data, &weight.data, &output.data, &bias}) fill(*buffer, random);
  }
  Conv2dShape s;
  Image<float> input, weight, output;
  Buffer<float> bias;
};

// Sums in float over integers, all below 2^24.
struct Expected {
  Expected(const Example& e)
      : output(static_cast<size_t>(e.output.data.size())),
        grad_input(static_cast<size_t>(e.input.data.size())),
        grad_weight(static_cast<size_t>(e.weight.data.size())) {
    const Conv2dShape& s = e.s;
    for_each_element(e.output, [&](int64_t n, int64_t k, int64_t p, int64_t q) {
      const int64_t g = k / (s.K / s.G);
      const double gradient = e.output.at(n, k, p, q);
      double sum = e.bias[k];
      for (int64_t c = 0; c < s.C / s.G; ++c)
        for (int64_t r = 0; r < 3; ++r)
          for (int64_t t = 0; t < 3; ++t) {
            const int64_t h = p - s.pad_top + r, w = q - s.pad_left + t, channel = g * (s.C / s.G) + c;
            if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
            const double x = e.input.at(n, channel, h, w), y = e.weight.at(k, c, r, t);
            sum += x * y;
            grad_input[static_cast<size_t>(e.input.offset(n, channel, h, w))] += gradient * y;
            grad_weight[static_cast<size_t>(e.weight.offset(k, c, r, t))] += gradient * x;
          }
      output[static_cast<size_t>(e.output.offset(n, k, p, q))] = sum;
    });
  }
  std::vector<double> output, grad_input, grad_weight;
};

void check_nearest(const Image<float>& image, const std::vector<double>& expected, bool relu = false) {
  for_each_element(image, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
    const double x = expected[static_cast<size_t>(image.offset(n, c, h, w))];
    CHECK_EQ(std::round(image.at(n, c, h, w)) + 0.0, relu && x < 0 ? 0 : x);
  });
}

void check_pooled(const Image<float>& pooled, const Example& e, const std::vector<double>& expected, bool relu) {
  for_each_element(pooled, [&](int64_t n, int64_t k, int64_t p, int64_t q) {
    double best = relu ? 0 : -HUGE_VAL;
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 2; ++j)
        best = std::max(best, expected[static_cast<size_t>(e.output.offset(n, k, 2 * p + i, 2 * q + j))]);
    CHECK_EQ(std::round(pooled.at(n, k, p, q)) + 0.0, best);
  });
}

}  // namespace

TEST(winograd_is_nearest_to_the_exact_result) {
  const std::vector<const CpuKernels*> tables = runnable_kernels();
  for (const Conv2dShape& s : kShapes) {
    for (const Layout layout : kLayouts) {
      const Example e(s, layout);
      const Expected expected(e);
      for (const CpuKernels* kernels : tables) {
        set_cpu_isa(kernels->isa);
        for (const int threads : {1, 3}) {
          omp_set_num_threads(threads);
          for (const bool relu : {false, true}) {
            Image<float> output(s.N, s.K, s.P, s.Q, layout);
            CHECK(winograd_conv2d_forward(s, e.input.view(), e.weight.view(), e.bias.data(),
                                          relu ? Activation::relu : Activation::none, 1, output.view()));
            check_nearest(output, expected.output, relu);
            Image<float> pooled(s.N, s.K, s.P / kWinogradPool, s.Q / kWinogradPool, layout);
            CHECK(winograd_conv2d_forward(s, e.input.view(), e.weight.view(), e.bias.data(),
                                          relu ? Activation::relu : Activation::none, kWinogradPool, pooled.view()));
            check_pooled(pooled, e, expected.output, relu);
          }
          Image<float> added(s.N, s.K, s.P, s.Q, layout);  // and a residual, which is taken away again
          CHECK(winograd_conv2d_forward(s, e.input.view(), e.weight.view(), e.bias.data(),
                                        {Activation::none, e.output.view().data}, 1, added.view()));
          for (int64_t i = 0; i < added.data.size(); ++i) added.data.data()[i] -= e.output.data[i];
          check_nearest(added, expected.output, false);
          Image<float> grad_input(s.N, s.C, s.H, s.W, layout), grad_weight(s.K, s.C / s.G, 3, 3, layout);
          CHECK(winograd_conv2d_backward_input(s, e.output.view(), e.weight.view(), nullptr, grad_input.view()));
          check_nearest(grad_input, expected.grad_input);
          CHECK(winograd_conv2d_backward_weight(s, e.input.view(), e.output.view(), grad_weight.view()));
          check_nearest(grad_weight, expected.grad_weight);
        }
      }
    }
  }
}

TEST(winograd_takes_what_does_not_pay_where_there_is_no_rival) {
  const std::vector<const CpuKernels*> tables = runnable_kernels();
  for (const Conv2dShape& s : kUnpaid) {
    for (const Layout layout : kLayouts) {
      const Example e(s, layout);
      const Expected expected(e);
      for (const CpuKernels* kernels : tables) {
        set_cpu_isa(kernels->isa);
        Image<float> output(s.N, s.K, s.P, s.Q, layout);
        const auto run = [&](WinogradRival rival) {
          return winograd_conv2d_forward(s, e.input.view(), e.weight.view(), e.bias.data(), Activation::none, 1,
                                         output.view(), rival);
        };
        CHECK(!run(WinogradRival::sums));
        CHECK(run(WinogradRival::none));
        check_nearest(output, expected.output);
      }
    }
  }
  Conv2dShape empty = kUnpaid[0];
  empty.N = 0;
  CHECK(!winograd_takes(empty, {}, WinogradRival::none));
}

TEST(winograd_leaves_to_others_what_is_not_finite_or_not_worth_it) {
  Example e(kShapes[0], Layout::kNchw);
  const auto run = [&] {
    Image<float> output(e.s.N, e.s.K, e.s.P, e.s.Q, Layout::kNchw);
    const Example& given = e;
    return winograd_conv2d_forward(e.s, given.input.view(), given.weight.view(), nullptr, Activation::none, 1,
                                   output.view());
  };
  CHECK(run());
  CHECK(set_winograd(false));
  CHECK(!run());
  CHECK(!set_winograd(true));
  e.input.data.set(7, std::nan(""));
  CHECK(!run());
  const Example strided(kShapes[0], Layout::kNchw);
  Conv2dShape s = strided.s;
  s.stride_h = 2;
  CHECK(!winograd_conv2d_backward_weight(s, strided.input.view(), strided.output.view(), {}));
}
