// The convolutions without a pool, implicit GEMM, direct and depthwise, of every instruction set and storage type
// against seven plain loops.
#include <omp.h>

#include "cpu/depthwise_conv2d.h"
#include "cpu/direct_conv2d.h"
#include "cpu/implicit_gemm.h"
#include "kernels_testing.h"

using namespace cnnfast;

namespace {

struct Geometry {
  int64_t N, C, H, W, K, R, S, G, stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w;

  Conv2dShape shape() const {
    return {N,
            C,
            H,
            W,
            K,
            R,
            S,
            conv_output_size(H, R, stride_h, pad_top + pad_bottom, dilation_h),
            conv_output_size(W, S, stride_w, pad_left + pad_right, dilation_w),
            G,
            stride_h,
            stride_w,
            pad_top,
            pad_bottom,
            pad_left,
            pad_right,
            dilation_h,
            dilation_w};
  }
};

// The first few are for algorithm `direct` to take: vectorised over columns in NCHW, over the output channels of a
// first layer in any layout.
constexpr size_t kDirectBackwardGeometries = 4, kDirectGeometries = 8, kFirstLayers = 16;
constexpr int64_t kFirstLayerChannels = 4;
constexpr Geometry kGeometries[] = {
    {2, 1, 28, 28, 12, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},    // the lecture's
    {1, 12, 14, 14, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},   // and its second
    {2, 3, 4, 12, 9, 1, 3, 1, 1, 1, 0, 0, 1, 1, 1, 1},      // rows of less than a 64-byte register
    {2, 9, 41, 40, 7, 5, 7, 1, 1, 1, 4, 0, 6, 0, 1, 1},     // three blocks of taps, all the padding a kernel can meet
    {1, 4, 90, 47, 2, 5, 2, 1, 1, 1, 0, 3, 1, 0, 1, 1},     // more than one band, tails, padding on one side
    {2, 3, 30, 30, 5, 3, 3, 1, 1, 1, 3, 3, 3, 3, 1, 1},     // more padding than that: forward only
    {2, 5, 33, 61, 10, 4, 5, 1, 3, 2, 2, 1, 3, 0, 1, 1},    // even and odd columns apart
    {1, 9, 12, 201, 13, 3, 8, 1, 1, 2, 1, 1, 7, 0, 1, 1},   // with rows of several tiles
    {2, 3, 23, 29, 20, 7, 7, 1, 2, 2, 3, 3, 3, 3, 1, 1},    // ResNet's in small; an odd number of registers
    {1, 3, 31, 39, 64, 11, 11, 1, 4, 4, 2, 2, 2, 2, 1, 1},  // AlexNet's; rows of less than two tiles
    {2, 4, 12, 120, 33, 4, 4, 1, 4, 4, 0, 0, 0, 0, 1, 1},   // patches, which are read where they lie
    {1, 2, 50, 70, 17, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},    // wide rows: over channels in NCHW, too
    {2, 1, 9, 75, 3, 5, 2, 1, 1, 3, 4, 0, 0, 3, 2, 5},      // channels of less than a register, everything odd
    {1, 3, 3, 5, 30, 3, 3, 1, 5, 4, 4, 4, 4, 4, 1, 1},      // windows in the padding alone
    {3, 3, 64, 130, 9, 3, 3, 1, 2, 2, 1, 1, 1, 1, 1, 1},    // several bands
    {2, 3, 140, 75, 34, 3, 3, 1, 1, 2, 0, 1, 0, 1, 1, 1},   // and of the weight gradient's
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1},
    {3, 5, 7, 11, 3, 2, 5, 1, 3, 2, 0, 1, 4, 2, 1, 2},    // everything odd, padding on one side
    {2, 6, 9, 8, 4, 3, 1, 2, 2, 3, 1, 1, 0, 0, 2, 1},     // groups
    {2, 9, 5, 6, 18, 3, 3, 9, 1, 1, 1, 1, 1, 1, 1, 1},    // one channel each
    {1, 70, 3, 4, 67, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1},   // a plain matrix product and its tails
    {1, 3, 4, 90, 33, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2, 2},   // a wide row
    {5, 2, 3, 3, 17, 3, 3, 1, 4, 4, 1, 1, 1, 1, 1, 1},    // input that no window reads
    {1, 300, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0, 1, 1},   // many channels to one pixel
    {5, 19, 7, 7, 50, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1},   // pixels numbered through images
    {3, 40, 7, 5, 22, 3, 2, 2, 2, 1, 2, 1, 0, 1, 1, 2},   // channels enough to be read in place, padded on all sides
    {2, 67, 5, 7, 129, 3, 3, 1, 2, 2, 1, 1, 1, 1, 1, 1},  // planes to be copied to channels_last
    {2, 27, 9, 6, 9, 1, 1, 1, 2, 3, 0, 0, 0, 0, 1, 1},    // a strided projection
    {0, 3, 5, 5, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},     // no images
};

// For algorithm `depthwise` to take.
constexpr Geometry kDepthwiseGeometries[] = {
    {2, 17, 14, 13, 17, 3, 3, 17, 1, 1, 1, 1, 1, 1, 1, 1},  // a block of channels that is not full
    {3, 16, 15, 14, 16, 3, 3, 16, 2, 2, 1, 1, 1, 1, 1, 1},  // and full ones
    {1, 9, 70, 40, 9, 5, 5, 9, 1, 1, 2, 2, 2, 2, 1, 1},     // more than one band
    {1, 9, 70, 41, 9, 5, 5, 9, 2, 2, 0, 1, 1, 0, 1, 1},
    {2, 12, 9, 8, 12, 7, 3, 12, 2, 1, 3, 3, 9, 9, 1, 1},  // columns of nothing but padding
    {1, 20, 9, 10, 20, 7, 7, 20, 1, 2, 3, 2, 6, 0, 1, 1},
    {2, 10, 8, 10, 10, 3, 5, 10, 2, 2, 0, 0, 0, 0, 1, 1},  // input that no window reads
    {1, 24, 1, 1, 24, 3, 3, 24, 2, 2, 1, 1, 1, 1, 1, 1},
    {2, 17, 3, 23, 17, 5, 5, 17, 1, 1, 2, 2, 2, 2, 1, 1},  // planes of fewer rows than a tile
    {1, 9, 21, 37, 9, 7, 7, 9, 2, 2, 3, 3, 3, 3, 1, 1},
    {2, 10, 9, 31, 10, 3, 3, 10, 2, 2, 1, 1, 1, 1, 1, 1},  // an odd column of the input gradient
    {1, 9, 6, 12, 9, 3, 5, 9, 1, 1, 4, 0, 9, 0, 1, 1},     // registers of nothing but padding
    {3, 9, 8, 66, 9, 3, 3, 9, 2, 2, 0, 1, 0, 1, 1, 1},
};

template <class T>
struct Operands {
  Operands(const Conv2dShape& s, Layout layout)
      : input(s.N, s.C, s.H, s.W, layout),
        weight(s.K, s.C / s.G, s.R, s.S, layout),
        output(s.N, s.K, s.P, s.Q, layout),
        bias(s.K),
        input_bias(s.C) {}
  Image<T> input, weight, output;
  Buffer<T> bias, input_bias;
};

// Calls body(n, k, p, q, c, r, s, h, w) for every product of the convolution; c counts within the group.
template <class Body>
void for_each_product(const Conv2dShape& s, const Body& body) {
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t k = 0; k < s.K; ++k)
      for (int64_t p = 0; p < s.P; ++p)
        for (int64_t q = 0; q < s.Q; ++q)
          for (int64_t c = 0; c < s.C / s.G; ++c)
            for (int64_t r = 0; r < s.R; ++r)
              for (int64_t t = 0; t < s.S; ++t) {
                const int64_t h = p * s.stride_h - s.pad_top + r * s.dilation_h;
                const int64_t w = q * s.stride_w - s.pad_left + t * s.dilation_w;
                if (h >= 0 && h < s.H && w >= 0 && w < s.W) body(n, k, p, q, c, r, t, h, w);
              }
}

template <class T>
void check_equal_to(const Image<T>& image, const std::vector<double>& expected,
                    Activation activation = Activation::none) {
  for_each_element(image, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
    const double x = expected[static_cast<size_t>(image.offset(n, c, h, w))];
    CHECK_EQ(image.at(n, c, h, w),
             rounded<T>(min(max(x, lowest_of<double>(activation)), highest_of<double>(activation))));
  });
}

// Small integers, so every order of summation gives the same float and results are compared by value.
template <class T>
struct Example {
  Example(const Conv2dShape& shape, Layout layout, bool with_bias)
      : s(shape),
        layout(layout),
        with_bias(with_bias),
        given(s, layout),
        output(static_cast<size_t>(given.output.data.size())),
        grad_input(static_cast<size_t>(given.input.data.size())),
        grad_weight(static_cast<size_t>(given.weight.data.size())),
        grad_bias(static_cast<size_t>(s.K)) {
    Random random(3);
    for (Buffer<T>* buffer :
         {&given.input.data, &given.weight.data, &given.output.data, &given.bias, &given.input_bias})
      fill(*buffer, random);
    for_each_element(given.output, [&](int64_t n, int64_t k, int64_t p, int64_t q) {
      if (with_bias) output[static_cast<size_t>(given.output.offset(n, k, p, q))] = given.bias[k];
      grad_bias[static_cast<size_t>(k)] += given.output.at(n, k, p, q);
    });
    for_each_element(given.input, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
      if (with_bias) grad_input[static_cast<size_t>(given.input.offset(n, c, h, w))] = given.input_bias[c];
    });
    for_each_product(
        s, [&](int64_t n, int64_t k, int64_t p, int64_t q, int64_t c, int64_t r, int64_t t, int64_t h, int64_t w) {
          const int64_t channel = k / (s.K / s.G) * (s.C / s.G) + c;
          const int64_t x = given.input.offset(n, channel, h, w), f = given.weight.offset(k, c, r, t),
                        y = given.output.offset(n, k, p, q);
          output[static_cast<size_t>(y)] += given.input.data[x] * given.weight.data[f];
          grad_input[static_cast<size_t>(x)] += given.output.data[y] * given.weight.data[f];
          grad_weight[static_cast<size_t>(f)] += given.output.data[y] * given.input.data[x];
        });
  }

  Activation activation() const { return with_bias ? Activation::relu6 : Activation::none; }

  // With grad_output as a residual; 16-bit sums are rounded before it is added.
  Epilogue<T> epilogue() const { return {activation(), given.output.view().data}; }
  void check_sum(const Image<T>& made) const {
    std::vector<double> sums(output.size());
    for (size_t i = 0; i < sums.size(); ++i)
      sums[i] = rounded<T>(output[i]) + rounded<T>(given.output.data[static_cast<int64_t>(i)]);
    check_equal_to(made, sums, activation());
  }

  // With the instruction set in use.
  void check() const {
    Operands<T> made(s, layout);
    implicit_gemm_forward<T>(s, given.input.view(), given.weight.view(), with_bias ? given.bias.data() : nullptr,
                             activation(), made.output.view());
    check_equal_to(made.output, output, activation());
    implicit_gemm_forward<T>(s, given.input.view(), given.weight.view(), with_bias ? given.bias.data() : nullptr,
                             epilogue(), made.output.view());
    check_sum(made.output);
    implicit_gemm_backward_input<T>(s, given.output.view(), given.weight.view(),
                                    with_bias ? given.input_bias.data() : nullptr, made.input.view());
    check_equal_to(made.input, grad_input);
    implicit_gemm_backward_weight<T>(s, given.input.view(), given.output.view(), made.weight.view());
    check_equal_to(made.weight, grad_weight);
    sum_over_pixels<T>(s.N, s.K, s.P, s.Q, given.output.view(), made.bias.data());
    for (int64_t k = 0; k < s.K; ++k) CHECK_EQ(made.bias[k], rounded<T>(grad_bias[static_cast<size_t>(k)]));
  }

  // Whether algorithm `depthwise` takes this example, and with the right results.
  bool check_depthwise() const {
    Operands<T> made(s, layout), all(s, layout);
    if (!depthwise_conv2d_forward<T>(s, given.input.view(), given.weight.view(),
                                     with_bias ? given.bias.data() : nullptr, activation(), made.output.view()))
      return false;
    check_equal_to(made.output, output, activation());
    CHECK(depthwise_conv2d_forward<T>(s, given.input.view(), given.weight.view(),
                                      with_bias ? given.bias.data() : nullptr, epilogue(), made.output.view()));
    check_sum(made.output);
    CHECK(depthwise_conv2d_backward_input<T>(s, given.output.view(), given.weight.view(),
                                             with_bias ? given.input_bias.data() : nullptr, made.input.view()));
    check_equal_to(made.input, grad_input);
    CHECK(depthwise_conv2d_backward<T>(s, given.output.view(), {}, given.input.view(), given.weight.view(),
                                       all.input.view(), all.weight.view(), all.bias.data()));
    if (!with_bias) check_equal_to(all.input, grad_input);  // the expected one of the others contains a bias
    check_equal_to(all.weight, grad_weight);
    for (int64_t k = 0; k < s.K; ++k) CHECK_EQ(all.bias[k], rounded<T>(grad_bias[static_cast<size_t>(k)]));
    return true;
  }

  // Whether algorithm `direct` takes this example, and with the right result.
  bool check_direct() const {
    Operands<T> made(s, layout);
    const float* bias = with_bias ? given.bias.data() : nullptr;
    if (!direct_conv2d_forward(s, given.input.view(), given.weight.view(), bias, activation(), made.output.view()))
      return false;
    check_equal_to(made.output, output, activation());
    CHECK(direct_conv2d_forward(s, given.input.view(), given.weight.view(), bias, epilogue(), made.output.view()));
    check_sum(made.output);
    return true;
  }

  // The same of its backward, where a ReLU's output of `clipped` lets every gradient through but those where it is 0.
  bool check_direct_backward(bool want_input) const {
    const auto input_of = [&](Operands<T>& made) { return want_input ? made.input.view() : View<T>{}; };
    Operands<T> all(s, layout);
    const View<const float> no_output{};
    if (!direct_conv2d_backward(s, given.output.view(), no_output, given.input.view(), given.weight.view(),
                                input_of(all), all.weight.view(), all.bias.data()))
      return false;
    if (want_input && !with_bias) {  // the expected input gradient of the others contains a bias
      check_equal_to(all.input, grad_input);
    }
    check_equal_to(all.weight, grad_weight);
    for (int64_t k = 0; k < s.K; ++k) CHECK_EQ(all.bias[k], rounded<T>(grad_bias[static_cast<size_t>(k)]));

    // With a ReLU: as without one, of a grad_output that is zero already where it clips. And one gradient at a time.
    Operands<T> relu(s, layout), expected(s, layout), one(s, layout);
    Image<T> clipped(s.N, s.K, s.P, s.Q, layout), gradient(s.N, s.K, s.P, s.Q, layout);
    for (int64_t i = 0; i < clipped.data.size(); ++i) {
      clipped.data.set(i, i % 3 == 1 ? 0.0 : i % 3 == 0 ? 0.5 : std::nan(""));
      gradient.data.set(i, i % 3 == 1 ? 0.0 : given.output.data[i]);
    }
    const Image<T>& y = clipped;
    const Image<T>& dy = gradient;
    CHECK(direct_conv2d_backward(s, given.output.view(), y.view(), given.input.view(), given.weight.view(),
                                 input_of(relu), relu.weight.view(), relu.bias.data()));
    CHECK(direct_conv2d_backward(s, dy.view(), no_output, given.input.view(), given.weight.view(), input_of(expected),
                                 expected.weight.view(), expected.bias.data()));
    if (want_input)
      CHECK(direct_conv2d_backward(s, given.output.view(), y.view(), given.input.view(), given.weight.view(),
                                   one.input.view(), {}, nullptr));
    CHECK(direct_conv2d_backward(s, given.output.view(), y.view(), given.input.view(), given.weight.view(), {},
                                 one.weight.view(), nullptr));
    CHECK(direct_conv2d_backward(s, given.output.view(), y.view(), given.input.view(), given.weight.view(), {}, {},
                                 one.bias.data()));
    for (const Operands<T>* made : {&relu, &one}) {
      for (int64_t i = 0; i < expected.input.data.size(); ++i) CHECK_EQ(made->input.data[i], expected.input.data[i]);
      for (int64_t i = 0; i < expected.weight.data.size(); ++i) CHECK_EQ(made->weight.data[i], expected.weight.data[i]);
      for (int64_t k = 0; k < s.K; ++k) CHECK_EQ(made->bias[k], expected.bias[k]);
    }
    return true;
  }

  Conv2dShape s;
  Layout layout;
  bool with_bias;
  Operands<T> given;
  std::vector<double> output, grad_input, grad_weight, grad_bias;
};

}  // namespace

// Calls body(i, example) for each geometry i, layout and instruction set; every other example has a bias and a ReLU6.
template <class T, size_t kCount, class Body>
void for_each_example(const Geometry (&geometries)[kCount], const Body& body) {
  for (size_t i = 0; i < kCount; ++i) {
    for (const Layout layout : kLayouts) {
      const bool with_bias = (i + static_cast<size_t>(layout)) % 2 == 0;
      const Example<T> example(geometries[i].shape(), layout, with_bias);
      for (const CpuKernels* kernels : runnable_kernels()) {
        WHERE(kernels->isa, " ", type_name<T>(), " geometry ", i, " layout ", static_cast<int>(layout));
        set_cpu_isa(kernels->isa);
        body(i, example);
      }
    }
  }
}

TEST(implicit_gemm) {
  omp_set_num_threads(2);
  for_each_type([](auto zero) {
    using T = decltype(zero);
    for_each_example<T>(kGeometries, [](size_t, const Example<T>& example) { example.check(); });
  });
}

TEST(direct) {
  omp_set_num_threads(2);
  for_each_example<float>(kGeometries, [](size_t i, const Example<float>& example) {
    const bool taken = example.check_direct();
    // Of fewer channels it depends on the register's width whether lanes over them repay.
    const bool first_layer = i < kFirstLayers && example.s.C <= kFirstLayerChannels && example.s.K >= 30;
    if (first_layer || (i < kDirectGeometries && example.layout == Layout::kNchw)) CHECK(taken);
    const bool backward_taken = example.check_direct_backward(true);
    if (i < kDirectBackwardGeometries) CHECK_EQ(backward_taken, example.given.input.stride.w == 1);
    const bool sums_taken = example.check_direct_backward(false);
    if (first_layer) CHECK(sums_taken);
  });
}

TEST(depthwise) {
  omp_set_num_threads(2);
  for_each_type([](auto zero) {
    using T = decltype(zero);
    for_each_example<T>(kDepthwiseGeometries,
                        [](size_t, const Example<T>& example) { CHECK(example.check_depthwise()); });
    for_each_example<T>(kGeometries, [](size_t, const Example<T>& example) {
      CHECK_EQ(example.check_depthwise(), false);  // channels with more than one output, or too few of them
    });
  });
}

// Random floats this time: their sums do depend on the order.
TEST(bits_do_not_depend_on_threads) {
  const Conv2dShape s = Geometry{7, 5, 13, 12, 19, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}.shape();
  Random random(5);
  Operands<float> given(s, Layout::kNchw);
  for (Image<float>* image : {&given.input, &given.weight, &given.output})
    for (int64_t i = 0; i < image->data.size(); ++i) image->data.set(i, random.bits() * 0x1p-31 - 1.0);
  const Operands<float>& in = given;
  const auto run = [&](int threads) {
    omp_set_num_threads(threads);
    Operands<float> made(s, Layout::kNchw);
    implicit_gemm_forward<float>(s, in.input.view(), in.weight.view(), nullptr, Activation::none, made.output.view());
    implicit_gemm_backward_input<float>(s, in.output.view(), in.weight.view(), nullptr, made.input.view());
    implicit_gemm_backward_weight<float>(s, in.input.view(), in.output.view(), made.weight.view());
    sum_over_pixels<float>(s.N, s.K, s.P, s.Q, in.output.view(), made.bias.data());
    return made;
  };
  const auto same_bits = [](const Buffer<float>& a, const Buffer<float>& b) {
    return std::memcmp(a.data(), b.data(), static_cast<size_t>(a.size()) * sizeof(float)) == 0;
  };
  for (const CpuKernels* kernels : runnable_kernels()) {
    WHERE(kernels->isa);
    set_cpu_isa(kernels->isa);
    const Operands<float> one = run(1);
    for (const int threads : {2, 3, 2}) {
      const Operands<float> many = run(threads);
      CHECK(same_bits(one.output.data, many.output.data));
      CHECK(same_bits(one.input.data, many.input.data));
      CHECK(same_bits(one.weight.data, many.weight.data));
      CHECK(same_bits(one.bias, many.bias));
    }
  }
}
