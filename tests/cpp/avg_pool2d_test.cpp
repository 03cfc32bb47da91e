// Average-pooling of every instruction set and storage type against a loop over each window.
#include "kernels_testing.h"

using namespace cnnfast;

namespace {

struct Geometry {
  int64_t N, C, H, W, R, S, stride_h, stride_w, pad_h, pad_w;
  bool ceil_mode;

  Pool2dShape shape() const {
    return {N,
            C,
            H,
            W,
            R,
            S,
            pool_output_size(H, R, stride_h, pad_h, 1, ceil_mode),
            pool_output_size(W, S, stride_w, pad_w, 1, ceil_mode),
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            1,
            1};
  }
};

constexpr Geometry kGeometries[] = {
    {2, 3, 6, 10, 2, 2, 2, 2, 0, 0, false}, {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, false},
    {3, 17, 7, 5, 3, 3, 2, 2, 1, 1, true},  {1, 2, 5, 67, 3, 2, 1, 1, 1, 1, false},
    {1, 16, 4, 35, 1, 5, 1, 4, 0, 2, true}, {2, 33, 3, 4, 3, 1, 5, 2, 1, 0, false},
    {0, 4, 6, 6, 2, 2, 2, 2, 0, 0, false},
};
constexpr AvgPool2dDivisor kDivisors[] = {{true, 0}, {false, 0}, {true, 7}};

// One axis of a window: the taps inside, and how many count with padding. A window may hang over the padding.
struct Axis {
  int64_t begin, end, counted;
};
Axis axis_of(int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t size) {
  const int64_t begin = out * stride - pad, end = std::min(begin + kernel, size + pad);
  return {std::max<int64_t>(begin, 0), std::min(end, size), end - begin};
}

// Sums are of small integers, so only the division and the way to it round: a few units in the last place.
template <class T>
double tolerance(double magnitude) {
  const double epsilon = sizeof(T) == 8               ? 0x1p-50
                         : sizeof(T) == 4             ? 0x1p-21
                         : std::is_same_v<T, float16> ? 0x1p-10
                                                      : 0x1p-7;
  return epsilon * magnitude;
}

template <class T>
void check_pooling(const AvgPool2dKernels<T>& kernels, const Pool2dShape& s, AvgPool2dDivisor divisor, Layout layout,
                   bool channels_last) {
  const Layout order = channels_last ? Layout::kNhwc : Layout::kNchw;
  Random random(11);
  Image<T> input(s.N, s.C, s.H, s.W, layout), output(s.N, s.C, s.P, s.Q, order),
      grad_output(s.N, s.C, s.P, s.Q, layout), grad_input(s.N, s.C, s.H, s.W, order);
  fill(input.data, random);
  fill(grad_output.data, random);
  const Image<T>&const_input = input, &const_grad = grad_output;
  in_two_pieces(s.N * s.P * (channels_last ? 1 : s.C), [&](int64_t begin, int64_t end) {
    kernels.forward({s, divisor, channels_last, const_input.view(), output.view()}, begin, end);
  });
  Buffer<Compute<T>> scratch(avg_pool2d_backward_scratch(s));
  in_two_pieces(s.N * s.H * (channels_last ? 1 : s.C), [&](int64_t begin, int64_t end) {
    kernels.backward({s, divisor, channels_last, const_grad.view(), grad_input.view()}, begin, end, scratch.data());
  });

  const size_t size = static_cast<size_t>(grad_input.data.size());
  std::vector<double> expected(size, 0.0), magnitude(size, 0.0);
  for_each_element(output, [&](int64_t n, int64_t c, int64_t p, int64_t q) {
    const Axis rows = axis_of(p, s.R, s.stride_h, s.pad_h, s.H), columns = axis_of(q, s.S, s.stride_w, s.pad_w, s.W);
    const int64_t inside = (rows.end - rows.begin) * (columns.end - columns.begin);
    const int64_t count = divisor.divisor_override != 0 ? divisor.divisor_override
                          : divisor.count_include_pad   ? rows.counted * columns.counted
                                                        : inside;
    double sum = 0;
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      for (int64_t w = columns.begin; w < columns.end; ++w) {
        sum += input.at(n, c, h, w);
        const size_t at = static_cast<size_t>(grad_input.offset(n, c, h, w));
        const double part = grad_output.at(n, c, p, q) / static_cast<double>(count);
        expected[at] += part, magnitude[at] += std::abs(part);
      }
    }
    const double mean = sum / static_cast<double>(count);
    CHECK(std::abs(output.at(n, c, p, q) - mean) <= tolerance<T>(std::abs(mean)));
  });
  for (size_t i = 0; i < size; ++i)
    CHECK(std::abs(grad_input.data[static_cast<int64_t>(i)] - expected[i]) <= tolerance<T>(magnitude[i]));
}

}  // namespace

TEST(avg_pool2d) {
  for (const CpuKernels* kernels : runnable_kernels()) {
    for_each_type([&](auto zero) {
      using T = decltype(zero);
      for (size_t i = 0; i < std::size(kGeometries); ++i) {
        for (size_t d = 0; d < std::size(kDivisors); ++d) {
          for (const Layout layout : kLayouts) {
            for (const bool channels_last : {false, true}) {
              WHERE(kernels->isa, " ", type_name<T>(), " geometry ", i, " divisor ", d, " layout ",
                    static_cast<int>(layout), channels_last ? " channels_last" : "");
              check_pooling<T>(kernels->of<T>().avg_pool2d, kGeometries[i].shape(), kDivisors[d], layout,
                               channels_last);
            }
          }
        }
      }
    });
  }
}
