// Batch normalisation's kernels of every instruction set and storage type, piece by piece, against their definitions.
#include "common/batch_norm.h"

#include "kernels_testing.h"

using namespace cnnfast;

namespace {

struct Size {
  int64_t N, C, H, W;
};

// Element i of a dense tensor: its channel, and the segment that it is in.
struct Place {
  int64_t c, segment;
};
Place place_of(const BatchNormShape& s, int64_t i) {
  const int64_t image = i / (s.rows * s.C), at = i % (s.rows * s.C);
  const int64_t c = s.channels_last ? at % s.C : at / s.rows, row = s.channels_last ? at / s.C : at % s.rows;
  return {c, image * s.parts + row / s.size};
}

// Small integers are summed exactly. Means and squares are not: a float's rounding, of values below 8.
constexpr double kClose = 1e-4;

template <class T>
void check_statistics(const BatchNormKernels<T>& kernels, const BatchNormShape& s, const Buffer<T>& input) {
  const int64_t count = s.segments() * s.C;
  Buffer<double> mean(count), squares(count);
  for (int64_t i = 0; i < s.pieces(); ++i) {
    const BatchNormPiece piece = s.piece(i);
    const int64_t at = piece.segment * s.C;
    kernels.statistics(s, piece, input.data(), mean.data() + at, squares.data() + at);
  }
  std::vector<double> sum(static_cast<size_t>(count)), square(static_cast<size_t>(count));
  for (int64_t i = 0; i < input.size(); ++i) {
    const Place place = place_of(s, i);
    const auto at = static_cast<size_t>(place.segment * s.C + place.c);
    sum[at] += input[i], square[at] += input[i] * input[i];
  }
  for (int64_t i = 0; i < count; ++i) {
    const double n = static_cast<double>(s.rows_of(i / s.C)), center = sum[static_cast<size_t>(i)] / n;
    CHECK(std::abs(mean[i] - center) < kClose);
    CHECK(std::abs(squares[i] - (square[static_cast<size_t>(i)] - n * center * center)) < kClose * n);
  }
}

template <class T>
void check_backward(const BatchNormKernels<T>& kernels, const BatchNormShape& s, BatchNormGradient<T> args,
                    const Buffer<T>& grad_output, const Buffer<T>& input, const Buffer<T>& clipped_as) {
  using A = Compute<T>;
  const int64_t count = s.segments() * s.C, size = input.size();
  Buffer<double> gradient(count), product(count);
  Buffer<T> grad_residual(size), grad_input(size);
  const bool stores = args.output != nullptr;  // the gradient that a residual gets, too
  args.grad_residual = stores ? grad_residual.data() : nullptr;
  args.grad_input = grad_input.data();
  for (int64_t i = 0; i < s.pieces(); ++i) {
    const BatchNormPiece piece = s.piece(i);
    const int64_t at = piece.segment * s.C;
    kernels.sums(s, piece, args, gradient.data() + at, product.data() + at);
    kernels.gradient(s, piece, args);
  }
  std::vector<double> sum(static_cast<size_t>(count)), along(static_cast<size_t>(count));
  const double high = args.activation == Activation::relu6 ? 6 : INFINITY;
  for (int64_t i = 0; i < size; ++i) {
    const Place place = place_of(s, i);
    const A mean = args.mean[place.c];
    const bool passes = args.activation == Activation::none || (clipped_as[i] > 0 && clipped_as[i] < high);
    const double g = passes ? grad_output[i] : 0.0, distance = input[i] - mean;
    if (stores) CHECK_EQ(grad_residual[i], g);
    CHECK_EQ(grad_input[i],
             rounded<T>(g * args.scale[place.c] + (distance * args.slope[place.c] + args.offset[place.c])));
    const auto at = static_cast<size_t>(place.segment * s.C + place.c);
    sum[at] += g, along[at] += g * distance;
  }
  for (int64_t i = 0; i < count; ++i) {
    CHECK_EQ(gradient[i], sum[static_cast<size_t>(i)]);
    CHECK_EQ(product[i], along[static_cast<size_t>(i)]);
  }
}

template <class T>
void check_batch_norm(const BatchNormKernels<T>& kernels, const Size& size, bool channels_last, bool with_residual,
                      Activation activation) {
  using A = Compute<T>;
  const BatchNormShape s(size.N, size.C, size.H, size.W, channels_last);
  const int64_t count = size.N * size.C * size.H * size.W;
  Random random(static_cast<uint64_t>(count));
  Buffer<T> input(count), residual(count), output(count), grad_output(count);
  Buffer<A> scale(s.C), shift(s.C), mean(s.C), slope(s.C), offset(s.C);
  for (Buffer<T>* images : {&input, &residual, &grad_output}) fill(*images, random);
  for (Buffer<A>* vector : {&scale, &shift, &mean, &slope, &offset}) fill(*vector, random, -2, 2);
  check_statistics(kernels, s, input);

  const BatchNormApply<T> apply{
      input.data(), with_residual ? residual.data() : nullptr, scale.data(), shift.data(), activation, output.data()};
  for (int64_t i = 0; i < s.pieces(); ++i) kernels.apply(s, s.piece(i), apply);
  const double low = lowest_of<double>(activation), high = highest_of<double>(activation);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t c = place_of(s, i).c;
    const double sum = input[i] * scale[c] + shift[c] + (with_residual ? residual[i] : 0.0);
    CHECK_EQ(output[i], std::min(std::max(sum, low), high));
  }
  const bool from_output = with_residual && activation != Activation::none;
  BatchNormGradient<T> gradient{};
  gradient.grad_output = grad_output.data(), gradient.input = input.data();
  gradient.output = from_output ? output.data() : nullptr;
  gradient.scale = scale.data(), gradient.shift = shift.data(), gradient.mean = mean.data();
  gradient.slope = slope.data(), gradient.offset = offset.data();
  gradient.activation = activation;
  check_backward(kernels, s, gradient, grad_output, input, output);
}

}  // namespace

TEST(batch_norm) {
  // Tails of registers, of chunks of 64 rows and of 4096 elements, and of segments.
  const Size sizes[] = {{2, 1, 3, 3}, {1, 29, 9, 15}, {3, 70, 1, 1}, {2, 135, 5, 3}, {1, 7, 91, 61}, {1, 2, 182, 181}};
  for (const CpuKernels* kernels : runnable_kernels()) {
    for_each_type([&](auto zero) {
      using T = decltype(zero);
      for (const Size& size : sizes) {
        for (int choice = 0; choice < 12; ++choice) {
          const bool channels_last = choice % 2 == 1, residual = choice / 2 % 2 == 1;
          const auto activation = static_cast<Activation>(choice / 4);
          WHERE(kernels->isa, " ", type_name<T>(), " ", size.N, " ", size.C, " ", size.H, " ", size.W, " choice ",
                choice);
          check_batch_norm<T>(kernels->of<T>().batch_norm, size, channels_last, residual, activation);
        }
      }
    });
  }
}
