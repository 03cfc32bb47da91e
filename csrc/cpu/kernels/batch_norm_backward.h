// Batch normalisation backward: sums of the gradient, then the gradient of the input. Both find out what the activation
// clipped by computing it again, from the same numbers by the same multiply-add and rounding as forward, or from the
// output where a residual was added.
#pragma once

#include "cpu/kernels/batch_norm.h"

namespace cnnfast::CNNFAST_ISA {

// How it is known what was clipped.
enum class Clipped { nothing, from_input, from_output };

// Calls f(std::bool_constant<kRows>{}, std::integral_constant<Clipped>{}).
template <class T, class F>
static void with_gradient(const BatchNormShape& s, const BatchNormGradient<T>& args, const F& f) {
  const auto with_rows = [&](auto clipped) {
    s.channels_last ? f(std::true_type{}, clipped) : f(std::false_type{}, clipped);
  };
  if (args.activation == Activation::none) {
    with_rows(std::integral_constant<Clipped, Clipped::nothing>{});
  } else if (args.output == nullptr) {
    with_rows(std::integral_constant<Clipped, Clipped::from_input>{});
  } else {
    with_rows(std::integral_constant<Clipped, Clipped::from_output>{});
  }
}

// The gradient of the sums that went into the activation.
template <class T, bool kRows, Clipped kClipped>
class SumGradient {
  using A = Compute<T>;

 public:
  explicit SumGradient(const BatchNormGradient<T>& args)
      : args_(args),
        // ReLU lets infinity's gradient through, and both let NaN's, as torch's do: nothing is beyond NaN.
        high_(args.activation == Activation::relu6 ? A(6) : static_cast<A>(__builtin_nan(""))) {}

  // Of elements that begin at `at`, of channel c or channels from c on; `input`: theirs, which both callers need, too.
  template <class V>
  CNNFAST_INLINE V operator()(int64_t at, int64_t c, V input) const {
    const V gradient = load_lanes<1, V>(args_.grad_output + at);
    if constexpr (kClipped == Clipped::nothing) {
      return gradient;
    } else {
      V y;
      if constexpr (kClipped == Clipped::from_output) {
        y = load_lanes<1, V>(args_.output + at);
      } else {
        y = input * per_channel<kRows, V>(args_.scale + c) + per_channel<kRows, V>(args_.shift + c);
        // As it was stored, which may be clipped where the sum was not.
        if constexpr (sizeof(T) != sizeof(A)) y = from_bits<V, T>(narrow(y, T{}));
      }
      return (y <= V{}) | (y >= high_ - V{}) ? V{} : gradient;
    }
  }

 private:
  const BatchNormGradient<T>& args_;
  A high_;
};

template <class T, bool kRows, Clipped kClipped>
static void gradient_runs(const BatchNormShape& s, const BatchNormPiece& piece, const BatchNormGradient<T>& args) {
  const SumGradient<T, kRows, kClipped> sum_gradient(args);
  for_each_run<kRows>(s, piece, [&](int64_t at, int64_t c, int64_t count) CNNFAST_INLINE_LAMBDA {
    for_each_lanes<Compute<T>>(count, [&](int64_t i, auto zero) CNNFAST_INLINE_LAMBDA {
      using V = decltype(zero);
      const int64_t channel = kRows ? i : c;
      const V x = load_lanes<1, V>(args.input + at + i), gradient = sum_gradient(at + i, channel, x);
      const V distance = x - per_channel<kRows, V>(args.mean + channel);
      const V rest =
          distance * per_channel<kRows, V>(args.slope + channel) + per_channel<kRows, V>(args.offset + channel);
      store_lanes(args.grad_input + at + i, gradient * per_channel<kRows, V>(args.scale + channel) + rest);
    });
  });
}

template <class T>
void batch_norm_gradient(const BatchNormShape& s, const BatchNormPiece& piece, const BatchNormGradient<T>& args) {
  with_gradient(s, args, [&](auto rows, auto clipped) { gradient_runs<T, rows.value, clipped.value>(s, piece, args); });
}

// The terms of both sums; the gradient is stored on the way, if wanted.
template <class T, bool kRows, Clipped kClipped>
class SumTerms {
 public:
  explicit SumTerms(const BatchNormGradient<T>& args) : args_(args), sum_gradient_(args) {}

  template <class V>
  CNNFAST_INLINE Terms<V> operator()(int64_t at, int64_t c, V) const {
    const V x = load_lanes<1, V>(args_.input + at), gradient = sum_gradient_(at, c, x);
    if constexpr (kClipped == Clipped::from_output) {
      if (args_.grad_residual != nullptr) store_lanes(args_.grad_residual + at, gradient);
    }
    return {gradient, gradient * (x - per_channel<kRows, V>(args_.mean + c))};
  }

 private:
  const BatchNormGradient<T>& args_;
  SumGradient<T, kRows, kClipped> sum_gradient_;
};

template <class T, Clipped kClipped>
static void row_sums(const BatchNormShape& s, const BatchNormPiece& piece, const BatchNormGradient<T>& args,
                     double* gradient, double* product) {
  using A = Compute<T>;
  const SumTerms<T, true, kClipped> term(args);
  for (int64_t c = 0; c < s.C; ++c) gradient[c] = product[c] = 0;
  for (int64_t done = 0; done < piece.rows; done += kNormRows) {
    const int64_t rows = min(kNormRows, piece.rows - done);
    for_each_block<A>(s.C, [&](int64_t c, auto zero, auto vectors) CNNFAST_INLINE_LAMBDA {
      using V = decltype(zero);
      constexpr int kVectors = decltype(vectors)::value;
      V first[kVectors] = {}, second[kVectors] = {};
      for (int64_t row = piece.row + done; row < piece.row + done + rows; ++row) {
        unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
          const int64_t channel = c + v.value * kLanesOf<V>;
          const auto [a, b] = term(row * s.C + channel, channel, V{});
          first[v.value] += a;
          second[v.value] += b;
        });
      }
      unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
        const int64_t channel = c + v.value * kLanesOf<V>;
        for (int lane = 0; lane < kLanesOf<V>; ++lane) gradient[channel + lane] += first[v.value][lane];
        for (int lane = 0; lane < kLanesOf<V>; ++lane) product[channel + lane] += second[v.value][lane];
      });
    });
  }
}

template <class T, Clipped kClipped>
static void plane_sums(const BatchNormShape& s, const BatchNormPiece& piece, const BatchNormGradient<T>& args,
                       double* gradient, double* product) {
  const SumTerms<T, false, kClipped> term(args);
  for_each_run<false>(s, piece, [&](int64_t at, int64_t c, int64_t count) CNNFAST_INLINE_LAMBDA {
    gradient[c] = product[c] = 0;
    for (int64_t done = 0; done < count; done += kNormElements) {
      const ChannelSums sums =
          sum_run<Compute<T>>(min(kNormElements, count - done),
                              [&](int64_t i, auto zero) CNNFAST_INLINE_LAMBDA { return term(at + done + i, c, zero); });
      gradient[c] += sums.first;
      product[c] += sums.second;
    }
  });
}

template <class T>
void batch_norm_sums(const BatchNormShape& s, const BatchNormPiece& piece, const BatchNormGradient<T>& args,
                     double* gradient, double* product) {
  with_gradient(s, args, [&](auto rows, auto clipped) {
    if constexpr (rows.value) {
      row_sums<T, clipped.value>(s, piece, args, gradient, product);
    } else {
      plane_sums<T, clipped.value>(s, piece, args, gradient, product);
    }
  });
}

template <class T>
constexpr BatchNormKernels<T> batch_norm_kernels() {
  return {batch_norm_statistics<T>, batch_norm_apply<T>, batch_norm_sums<T>, batch_norm_gradient<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
