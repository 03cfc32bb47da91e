// What sums go through that a clip in registers does not do: a residual is added, and SiLU or Hardswish applied, in
// memory, to a piece of the output that was just written and lies in the first cache levels. Kernels' innermost loops
// stay what they are, and the code is there once.
#pragma once

#include "cpu/kernels/constant.h"
#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/storage.h"

namespace cnnfast::CNNFAST_ISA {

// e^x = 2^n * e^r, n an integer, |r| <= log(2) / 2; log(2) in two parts, so that n times the first is exact.
template <class A>
struct Exponential;
template <>
struct Exponential<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 7;
  static constexpr float kLowest = -86, kHighest = 89;
  static constexpr float kLog2 = 0.693359375f, kLog2Rest = -2.12194440e-4f;
};
template <>
struct Exponential<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kDegree = 13;
  static constexpr double kLowest = -707, kHighest = 710;
  static constexpr double kLog2 = 6.93145751953125e-1, kLog2Rest = 1.42860682030941723212e-6;
};

// e^x to an ulp or two; from where it overflows on, infinity. Below kLowest, where 1 + e^x is 1, it is e^kLowest.
template <class A>
CNNFAST_INLINE Vec<A> exponential(Vec<A> x) {
  using E = Exponential<A>;
  using Words = Vec<typename E::Bits>;
  x = Clip<A>(E::kLowest, E::kHighest)(x);
  // Added to a number whose last bit is worth 1, n is rounded, and is in the low bits.
  constexpr A kRounder = A(int64_t{3} << (E::kMantissa - 1)), kLog2Inverse = A(1.4426950408889634);
  const Vec<A> shifted = x * kLog2Inverse + kRounder, n = shifted - kRounder;
  const Vec<A> r = x - n * E::kLog2 - n * E::kLog2Rest;
  constexpr auto kTerms = [] {  // 1 / k!
    struct Terms {
      double of[E::kDegree + 1] = {1};
    } terms;
    for (int k = 1; k <= E::kDegree; ++k) terms.of[k] = terms.of[k - 1] / k;
    return terms;
  }();
  Vec<A> sum = broadcast(A(kTerms.of[E::kDegree]));
  unroll<E::kDegree>([&](auto i) CNNFAST_INLINE_LAMBDA { sum = sum * r + A(kTerms.of[E::kDegree - 1 - i.value]); });
  // Of 2^(n - 1), which a register can hold even where 2^n is infinity: the exponent's bits.
  const Words half = (reinterpret_cast<Words>(shifted) + (E::kBias - 1)) << E::kMantissa;
  const Vec<A> result = sum * reinterpret_cast<Vec<A>>(half);
  return result + result;
}

// In torch's order, so that infinities become what they become there.
template <class A>
CNNFAST_INLINE Vec<A> silu(Vec<A> x) {
  return x / (exponential<A>(-x) + A(1));
}
template <class A>
CNNFAST_INLINE Vec<A> hardswish(Vec<A> x) {
  return x * Clip<A>(0, 6)(x + A(3)) / A(6);
}

// A piece of an output: rows, `pitch` apart, of elements that are `step` apart.
struct Area {
  int64_t rows, pitch, count, step;
};

// Up to a register of elements.
template <class T>
CNNFAST_INLINE Vec<Compute<T>> load_some(const T* from, int64_t step, int64_t lanes) {
  using A = Compute<T>;
  if (step == 1 && lanes == kLanes<A>) return load_lanes<1, Vec<A>>(from);
  if constexpr (std::is_same_v<T, A>) {
    if (step == 1) return load_partial(from, lanes);
  }
  A values[kLanes<A>] = {};
  for (int64_t i = 0; i < lanes; ++i) values[i] = load(from + i * step);
  return load_vec(values);
}

template <class T>
CNNFAST_INLINE void store_some(T* to, int64_t step, int64_t lanes, Vec<Compute<T>> x) {
  using A = Compute<T>;
  if (step == 1 && lanes == kLanes<A>) return store_lanes(to, x);
  if constexpr (std::is_same_v<T, A>) {
    if (step == 1) return store_partial(to, x, lanes);
  }
  A values[kLanes<A>];
  store_vec(values, x);
  for (int64_t i = 0; i < lanes; ++i) store(to + i * step, values[i]);
}

// Asks for the residual of an area, whose rows lie further apart than the processor follows.
template <class T>
CNNFAST_INLINE void prefetch_residual(const Epilogue<T>& epilogue, const Area& area) {
  if (epilogue.residual == nullptr) return;
  constexpr int64_t kLine = kLineBytes / sizeof(T);
  for (int64_t row = 0; row < area.rows; ++row) {
    const T* from = epilogue.residual + row * area.pitch;
    for (int64_t i = 0; i < area.count; i += kLine) __builtin_prefetch(from + i, 0, 2);
    __builtin_prefetch(from + area.count - 1, 0, 2);
  }
}

// x = activate(x + residual), of neighbours.
template <class T, class Activate>
CNNFAST_INLINE void finish_run(const Activate& activate, T* x, const T* residual, int64_t count) {
  constexpr int64_t kLane = kLanes<Compute<T>>;
  const auto finish = [&](int64_t i, int64_t lanes) CNNFAST_INLINE_LAMBDA {
    Vec<Compute<T>> y = load_some(x + i, 1, lanes);
    if (residual != nullptr) y += load_some(residual + i, 1, lanes);
    store_some(x + i, 1, lanes, activate(y));
  };
  int64_t i = 0;
  for (; i + kLane <= count; i += kLane) finish(i, kLane);
  if (i < count) finish(i, count - i);
}

template <class T, class Activate>
CNNFAST_INLINE void finish_rows(const Activate& activate, T* x, const T* residual, const Area& area) {
  constexpr int64_t kLane = kLanes<Compute<T>>;
  if (area.step == 1) {
    const bool joined = area.pitch == area.count;  // rows without a gap are as one
    const int64_t rows = joined ? 1 : area.rows, count = joined ? area.rows * area.count : area.count;
    for (int64_t row = 0; row < rows; ++row, x += area.pitch) {
      finish_run(activate, x, residual, count);
      if (residual != nullptr) residual += area.pitch;
    }
    return;
  }
  for (int64_t row = 0; row < area.rows; ++row) {
    for (int64_t i = 0; i < area.count; i += kLane) {
      const int64_t at = row * area.pitch + i * area.step, lanes = min(kLane, area.count - i);
      Vec<Compute<T>> y = load_some(x + at, area.step, lanes);
      if (residual != nullptr) y += load_some(residual + at, area.step, lanes);
      store_some(x + at, area.step, lanes, activate(y));
    }
  }
}

template <class T>
__attribute__((noinline)) void finish_area(const Epilogue<T>& epilogue, T* x, const Area& area) {
  using A = Compute<T>;
  if (epilogue.activation == Activation::silu) {
    finish_rows([](Vec<A> y) CNNFAST_INLINE_LAMBDA { return silu<A>(y); }, x, epilogue.residual, area);
  } else if (epilogue.activation == Activation::hardswish) {
    finish_rows([](Vec<A> y) CNNFAST_INLINE_LAMBDA { return hardswish<A>(y); }, x, epilogue.residual, area);
  } else {
    finish_rows(Clip<A>(epilogue.activation), x, epilogue.residual, area);
  }
}

// Finishes an area that begins at x, in an output that begins at `output`.
template <class T>
CNNFAST_INLINE void finish(const Epilogue<T>& epilogue, const T* output, T* x, const Area& area) {
  if (!epilogue.in_registers()) finish_area(epilogue.from(x - output), x, area);
}

// Channels [c, c + channels) of some rows and columns of an image's output.
struct OutputBox {
  int64_t n, c, channels, top, rows, left, columns;
};

template <class T>
static void finish_box(const Epilogue<T>& epilogue, View<T> output, const OutputBox& box) {
  if (epilogue.in_registers()) return;
  const Strides& stride = output.stride;
  if (stride.c == 1) {
    for (int64_t row = box.top; row < box.top + box.rows; ++row)
      finish(epilogue, output.data, output.at(box.n, box.c, row, box.left), {box.columns, stride.w, box.channels, 1});
    return;
  }
  const bool joined = stride.h == box.columns * stride.w;  // rows without a gap are as one
  const Area area{joined ? 1 : box.rows, stride.h, joined ? box.rows * box.columns : box.columns, stride.w};
  for (int64_t c = box.c; c < box.c + box.channels; ++c)
    finish(epilogue, output.data, output.at(box.n, c, box.top, box.left), area);
}

}  // namespace cnnfast::CNNFAST_ISA
