// Batch normalisation by the statistics of the batch, forward and backward, with a residual and an activation that
// clips. Memory is the bound: forward reads the input twice and writes the output, backward reads gradient and input
// twice and writes one. What lies between is computed again, and with it what was clipped; after a residual, of which
// nothing else is kept, that is read from the output.
//
// Chunks that stay in the first-level cache are summed in registers, twice where it is the variance: first the mean,
// then squares of what is left. What becomes of chunks is added in double.
#pragma once

#include "cpu/batch_norm.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/storage.h"

namespace cnnfast::CNNFAST_ISA {

// Registers of sums at a time: two for each, and as many of means, must find room.
constexpr int kNormVectors = kWideRegisters ? 8 : 4;
constexpr int64_t kNormRows = 64, kNormElements = 4096;  // in a chunk, in channels_last and in NCHW

// Calls body(i, V{}) with registers, then smaller ones, that cover [0, count).
template <class A, class Body>
CNNFAST_INLINE void for_each_lanes(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) body(i, Vec<A>{});
  if constexpr (kLanes<A> > 8) {
    if (i + 8 <= count) body(i, Lanes<A, 8>{}), i += 8;
  }
  if constexpr (kLanes<A> > 4) {
    if (i + 4 <= count) body(i, Lanes<A, 4>{}), i += 4;
  }
  for (; i < count; ++i) body(i, Lanes<A, 1>{});
}

// A number of each channel: of neighbouring channels (kRows: channels_last), or of one.
template <bool kRows, class V, class A>
CNNFAST_INLINE V per_channel(const A* values) {
  if constexpr (kRows) {
    return load_lanes<1, V>(values);
  } else {
    return *values - V{};
  }
}

// Calls run(at, c, count) for neighbours in memory: of all channels, or of channel c.
template <bool kRows, class Run>
CNNFAST_INLINE void for_each_run(const BatchNormShape& s, const BatchNormPiece& piece, const Run& run) {
  if constexpr (kRows) {
    for (int64_t row = piece.row; row < piece.row + piece.rows; ++row) run(row * s.C, int64_t{0}, s.C);
  } else {
    for (int64_t c = piece.c; c < piece.c + piece.channels; ++c)
      run((piece.image * s.C + c) * s.rows + piece.row, c, piece.rows);
  }
}

template <class V, class A>
CNNFAST_INLINE V clip_to(V x, A low, A high) {
  x = low - V{} > x ? low - V{} : x;
  return high - V{} < x ? high - V{} : x;
}

template <class T, bool kRows, bool kResidual>
static void apply_runs(const BatchNormShape& s, const BatchNormPiece& piece, const BatchNormApply<T>& args) {
  using A = Compute<T>;
  const A low = lowest_of<A>(args.activation), high = highest_of<A>(args.activation);
  for_each_run<kRows>(s, piece, [&](int64_t at, int64_t c, int64_t count) CNNFAST_INLINE_LAMBDA {
    for_each_lanes<A>(count, [&](int64_t i, auto zero) CNNFAST_INLINE_LAMBDA {
      using V = decltype(zero);
      const int64_t channel = kRows ? i : c;
      V x = load_lanes<1, V>(args.input + at + i) * per_channel<kRows, V>(args.scale + channel) +
            per_channel<kRows, V>(args.shift + channel);
      if constexpr (kResidual) x += load_lanes<1, V>(args.residual + at + i);
      store_lanes(args.output + at + i, clip_to(x, low, high));
    });
  });
}

template <class T>
void batch_norm_apply(const BatchNormShape& s, const BatchNormPiece& piece, const BatchNormApply<T>& args) {
  const auto run = [&](auto rows, auto residual) { apply_runs<T, rows.value, residual.value>(s, piece, args); };
  const auto with_residual = [&](auto rows) {
    args.residual == nullptr ? run(rows, std::false_type{}) : run(rows, std::true_type{});
  };
  s.channels_last ? with_residual(std::true_type{}) : with_residual(std::false_type{});
}

// What an element adds to each of two sums.
template <class V>
struct Terms {
  V first, second;
};

// Two sums of a channel.
struct ChannelSums {
  double first, second;
};

// Every lane in one number: halves are added until there is but one.
template <class V>
CNNFAST_INLINE auto sum_of_lanes(V v) {
  constexpr int kHalf = kLanesOf<V> / 2;
  if constexpr (kHalf == 0) {
    return v[0];
  } else {
    return [&]<int... kLane>(std::integer_sequence<int, kLane...>) CNNFAST_INLINE_LAMBDA {
      return sum_of_lanes(__builtin_shufflevector(v, v, kLane...) + __builtin_shufflevector(v, v, (kHalf + kLane)...));
    }(std::make_integer_sequence<int, kHalf>{});
  }
}

// Sums of term(at, V{}) over [0, count), all of one channel.
template <class A, class Term>
CNNFAST_INLINE ChannelSums sum_run(int64_t count, const Term& term) {
  ChannelSums sums{};
  int64_t at = 0;
  const auto add = [&](auto zero, auto vectors, int64_t rows) CNNFAST_INLINE_LAMBDA {
    using V = decltype(zero);
    V first[vectors.value] = {}, second[vectors.value] = {};
    for (int64_t row = 0; row < rows; ++row) {
      unroll<vectors.value>([&](auto v) CNNFAST_INLINE_LAMBDA {
        const auto [a, b] = term(at + (row * vectors.value + v.value) * kLanesOf<V>, zero);
        first[v.value] += a;
        second[v.value] += b;
      });
    }
    unroll<vectors.value - 1>(
        [&](auto v) CNNFAST_INLINE_LAMBDA { first[0] += first[v.value + 1], second[0] += second[v.value + 1]; });
    sums.first += sum_of_lanes(first[0]), sums.second += sum_of_lanes(second[0]);
    at += rows * vectors.value * kLanesOf<V>;
  };
  constexpr int kVectors = 4;
  if (count >= kVectors * kLanes<A>) add(Vec<A>{}, Constant<kVectors>{}, count / (kVectors * kLanes<A>));
  if (count - at >= kLanes<A>) add(Vec<A>{}, Constant<1>{}, (count - at) / kLanes<A>);
  if constexpr (kLanes<A> > 4) {
    if (count - at >= 4) add(Lanes<A, 4>{}, Constant<1>{}, (count - at) / 4);
  }
  if (at < count) add(Lanes<A, 1>{}, Constant<1>{}, count - at);
  return sums;
}

// Calls block(c, V{}, Constant<registers>{}) for neighbouring channels that cover [0, channels).
template <class A, class Block>
CNNFAST_INLINE void for_each_block(int64_t channels, const Block& block) {
  int64_t c = 0;
  while (channels - c >= kLanes<A>) {
    const int64_t vectors = min<int64_t>(kNormVectors, (channels - c) / kLanes<A>);
    with_constant<1, kNormVectors>(vectors, [&](auto count) { block(c, Vec<A>{}, count); });
    c += vectors * kLanes<A>;
  }
  const int64_t first = c;
  for_each_lanes<A>(channels - first, [&](int64_t i, auto zero) { block(first + i, zero, Constant<1>{}); });
}

// Adds a chunk to the sample of `before` elements: a first guess of its mean, and the sums of what is left without it
// and of the squares of that.
CNNFAST_INLINE void add_chunk(double& mean, double& squares, int64_t before, double guess, double rest, double square,
                              int64_t count) {
  const double n = static_cast<double>(count);
  Sample sample{static_cast<double>(before), mean, squares};
  sample.add({n, guess + rest / n, square - rest * rest / n});
  mean = sample.mean, squares = sample.squares;
}

template <class T>
static void row_statistics(const BatchNormShape& s, const BatchNormPiece& piece, const T* input, double* mean,
                           double* squares) {
  using A = Compute<T>;
  for (int64_t c = 0; c < s.C; ++c) mean[c] = squares[c] = 0;
  for (int64_t done = 0; done < piece.rows; done += kNormRows) {
    const int64_t rows = min(kNormRows, piece.rows - done);
    for_each_block<A>(s.C, [&](int64_t c, auto zero, auto vectors) CNNFAST_INLINE_LAMBDA {
      using V = decltype(zero);
      constexpr int kVectors = decltype(vectors)::value;
      const T* from = input + (piece.row + done) * s.C + c;
      V guess[kVectors] = {}, rest[kVectors] = {}, square[kVectors] = {};
      for (int64_t row = 0; row < rows; ++row) {
        unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
          guess[v.value] += load_lanes<1, V>(from + row * s.C + v.value * kLanesOf<V>);
        });
      }
      unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA { guess[v.value] /= A(rows); });
      for (int64_t row = 0; row < rows; ++row) {
        unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
          const V x = load_lanes<1, V>(from + row * s.C + v.value * kLanesOf<V>) - guess[v.value];
          rest[v.value] += x;
          square[v.value] += x * x;
        });
      }
      unroll<kVectors>([&](auto v) CNNFAST_INLINE_LAMBDA {
        const int64_t first = c + v.value * kLanesOf<V>;
        for (int lane = 0; lane < kLanesOf<V>; ++lane) {
          add_chunk(mean[first + lane], squares[first + lane], done, guess[v.value][lane], rest[v.value][lane],
                    square[v.value][lane], rows);
        }
      });
    });
  }
}

template <class T>
static void plane_statistics(const BatchNormShape& s, const BatchNormPiece& piece, const T* input, double* mean,
                             double* squares) {
  using A = Compute<T>;
  for_each_run<false>(s, piece, [&](int64_t at, int64_t c, int64_t count) CNNFAST_INLINE_LAMBDA {
    mean[c] = squares[c] = 0;
    for (int64_t done = 0; done < count; done += kNormElements) {
      const int64_t length = min(kNormElements, count - done);
      const T* from = input + at + done;
      const ChannelSums sum = sum_run<A>(length, [&](int64_t i, auto zero) CNNFAST_INLINE_LAMBDA {
        return Terms<decltype(zero)>{load_lanes<1, decltype(zero)>(from + i), zero};
      });
      const A guess = static_cast<A>(sum.first / static_cast<double>(length));
      const ChannelSums rest = sum_run<A>(length, [&](int64_t i, auto zero) CNNFAST_INLINE_LAMBDA {
        const auto x = load_lanes<1, decltype(zero)>(from + i) - guess;
        return Terms<decltype(zero)>{x, x * x};
      });
      add_chunk(mean[c], squares[c], done, guess, rest.first, rest.second, length);
    }
  });
}

template <class T>
void batch_norm_statistics(const BatchNormShape& s, const BatchNormPiece& piece, const T* input, double* mean,
                           double* squares) {
  s.channels_last ? row_statistics(s, piece, input, mean, squares) : plane_statistics(s, piece, input, mean, squares);
}

}  // namespace cnnfast::CNNFAST_ISA
