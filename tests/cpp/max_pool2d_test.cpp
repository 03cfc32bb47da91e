// Max-pooling of every instruction set and storage type against a loop over each window.
#include "kernels_testing.h"

using namespace cnnfast;

namespace {

struct Geometry {
  int64_t N, C, H, W, R, S, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool ceil_mode;

  Pool2dShape shape() const {
    return {N,
            C,
            H,
            W,
            R,
            S,
            pool_output_size(H, R, stride_h, pad_h, dilation_h, ceil_mode),
            pool_output_size(W, S, stride_w, pad_w, dilation_w, ceil_mode),
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            dilation_h,
            dilation_w};
  }
};

constexpr Geometry kGeometries[] = {
    {2, 3, 6, 10, 2, 2, 2, 2, 0, 0, 1, 1, false},    // the lecture's
    {1, 12, 28, 28, 2, 2, 2, 2, 0, 0, 1, 1, false},  // likewise, at its size
    {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, false},     //
    {3, 17, 7, 5, 3, 3, 2, 2, 1, 1, 1, 1, true},     // overlapping windows, a tail of channels
    {1, 2, 5, 33, 3, 2, 1, 1, 1, 1, 1, 1, false},    // a wide row and its tail
    {2, 5, 9, 11, 2, 3, 3, 1, 1, 0, 2, 3, true},     // dilation, windows cut off
    {1, 16, 4, 67, 1, 5, 1, 4, 0, 2, 1, 1, true},    //
    {2, 33, 3, 4, 3, 1, 5, 2, 1, 0, 1, 1, false},    // gaps between windows
    {0, 4, 6, 6, 2, 2, 2, 2, 0, 0, 1, 1, false},     // no images
    {2, 9, 13, 40, 3, 3, 2, 2, 1, 1, 1, 1, false},   // ResNet's, in whole registers
    {1, 4, 9, 37, 3, 3, 1, 1, 1, 1, 1, 1, false},    // nine windows an element
    {1, 3, 12, 30, 2, 3, 1, 2, 1, 0, 1, 1, true},    // two rows, and one or two columns
    {1, 5, 14, 14, 2, 2, 2, 2, 0, 0, 1, 1, false},   // rows of seven
};

// The winner of a window, and whether it has one.
struct Winner {
  double value = -INFINITY;
  int64_t place = -1, code = -1;
};

template <class T>
Winner winner_of(const Image<T>& input, const Pool2dShape& s, int64_t n, int64_t c, int64_t p, int64_t q) {
  Winner best;
  for (int64_t r = 0; r < s.R; ++r) {
    for (int64_t t = 0; t < s.S; ++t) {
      const int64_t h = p * s.stride_h - s.pad_h + r * s.dilation_h, w = q * s.stride_w - s.pad_w + t * s.dilation_w;
      if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
      const double x = input.at(n, c, h, w);
      if (best.place < 0 || x > best.value || std::isnan(x)) best = {x, h * s.W + w, r * s.S + t};
    }
  }
  return best;
}

// Stored is int64_t for places, uint8_t for codes.
template <class T, class Stored>
void check_pooling(const MaxPool2dKernels<T>& all, const MaxPool2dKernelsOf<T, Stored>& kernels, const Pool2dShape& s,
                   bool relu, Layout layout, bool channels_last) {
  constexpr bool kCodes = sizeof(Stored) == 1;
  const Layout order = channels_last ? Layout::kNhwc : Layout::kNchw;
  Random random(7);
  Image<T> input(s.N, s.C, s.H, s.W, layout), output(s.N, s.C, s.P, s.Q, order),
      grad_output(s.N, s.C, s.P, s.Q, layout), grad_input(s.N, s.C, s.H, s.W, order);
  Image<Stored> winner(s.N, s.C, s.P, s.Q, order);
  fill(input.data, random);
  fill(grad_output.data, random);
  for (int64_t i = 0; i < input.data.size(); i += 13) input.data.set(i, i % 2 == 0 ? NAN : -INFINITY);

  const int64_t rows = s.N * s.P * (channels_last ? 1 : s.C);
  const Image<T>& const_input = input;
  in_two_pieces(rows, [&](int64_t begin, int64_t end) {
    kernels.forward({s, relu, channels_last, const_input.view(), output.view(), winner.view()}, begin, end);
  });
  std::vector<double> expected(static_cast<size_t>(grad_input.data.size()), 0.0);
  for_each_element(output, [&](int64_t n, int64_t c, int64_t p, int64_t q) {
    const Winner best = winner_of(input, s, n, c, p, q);
    const bool clipped = relu && best.place >= 0 && !(best.value > 0) && !std::isnan(best.value);
    CHECK(same(output.at(n, c, p, q), clipped ? 0.0 : best.value));
    const int64_t stored = *winner.view().at(n, c, p, q);
    const bool none = kCodes && (clipped || best.place < 0);
    CHECK_EQ(stored, none ? int64_t{kClipped} : kCodes ? best.code : best.place);
    if (clipped || best.place < 0) return;
    const int64_t at = grad_input.offset(n, c, best.place / s.W, best.place % s.W);
    expected[static_cast<size_t>(at)] += grad_output.at(n, c, p, q);
  });

  Buffer<Compute<T>> scratch(max_pool2d_scatter_scratch<T>(s, channels_last));
  const Image<T>& const_grad = grad_output;
  const Image<Stored>& const_winner = winner;
  const MaxPool2dBackward<T, Stored> backward{s, channels_last, const_grad.view(), const_winner.view(),
                                              grad_input.view()};
  const auto check_grad_input = [&] {
    for (size_t i = 0; i < expected.size(); ++i)
      CHECK_EQ(grad_input.data[static_cast<int64_t>(i)], rounded<T>(expected[i]));
  };
  in_two_pieces(s.N * max_pool2d_scatter_blocks(s, channels_last),
                [&](int64_t begin, int64_t end) { CHECK(kernels.scatter(backward, begin, end, scratch.data())); });
  check_grad_input();
  if constexpr (kCodes) {
    if (!max_pool2d_gathers(backward)) return;
    fill(grad_input.data, random);
    in_two_pieces(s.N * s.H * (channels_last ? 1 : s.C),
                  [&](int64_t begin, int64_t end) { all.gather(backward, begin, end); });
    check_grad_input();
  }
}

}  // namespace

TEST(max_pool2d) {
  for (const CpuKernels* kernels : runnable_kernels()) {
    for_each_type([&](auto zero) {
      using T = decltype(zero);
      for (size_t i = 0; i < std::size(kGeometries); ++i) {
        const Pool2dShape s = kGeometries[i].shape();
        for (const Layout layout : kLayouts) {
          for (const bool channels_last : {false, true}) {
            WHERE(kernels->isa, " ", type_name<T>(), " geometry ", i, " layout ", static_cast<int>(layout),
                  channels_last ? " channels_last" : "");
            const MaxPool2dKernels<T>& of = kernels->of<T>().max_pool2d;
            check_pooling<T, int64_t>(of, of.index, s, false, layout, channels_last);
            for (const bool relu : {false, true})
              check_pooling<T, uint8_t>(of, of.code, s, relu, layout, channels_last);
          }
        }
      }
    });
  }
}

TEST(a_winner_outside_the_plane_is_refused) {
  const Pool2dShape s = Geometry{1, 1, 4, 4, 2, 2, 2, 2, 0, 0, 1, 1, false}.shape();
  for (const CpuKernels* kernels : runnable_kernels()) {
    for (const int64_t place : {int64_t{-2}, int64_t{16}, int64_t{1} << 40}) {
      WHERE(kernels->isa, " place ", place);
      Image<float> grad_output(1, 1, 2, 2, Layout::kNchw), grad_input(1, 1, 4, 4, Layout::kNchw);
      Image<int64_t> winner(1, 1, 2, 2, Layout::kNchw);
      for (int64_t i = 0; i < 4; ++i) grad_output.data.set(i, 1), winner.data.data()[i] = i == 2 ? place : -1;
      const Image<float>& grad = grad_output;
      const Image<int64_t>& winners = winner;
      CHECK(!kernels->f32.max_pool2d.index.scatter({s, false, grad.view(), winners.view(), grad_input.view()}, 0, 1,
                                                   nullptr));
    }
  }
}
