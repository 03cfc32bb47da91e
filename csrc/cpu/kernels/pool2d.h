// What the pooling kernels share: registers of a storage type's Compute<T>, and which part of a row they cover.
//
// A register runs over channels where channels are adjacent in memory (channels_last), else over output columns,
// whose inputs lie stride_w apart: 1 and 2 are loaded as registers, wider strides element by element.
#pragma once

#include "cpu/kernels/constant.h"

namespace cnnfast::CNNFAST_ISA {

template <class T>
using ComputeVec = Vec<Compute<T>>;
template <class T>
constexpr int kComputeLanes = kLanes<Compute<T>>;
// Registers of rows too short for a whole one.
template <class T>
constexpr int kShortLanes = kComputeLanes<T> > 4 ? 4 : kComputeLanes<T>;

template <class V>
constexpr int kLanesOf = sizeof(V) / sizeof(V{}[0]);

template <class V>
CNNFAST_INLINE V load_bits(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Lanes kFirst, kFirst + 2, ... of `a` followed by `b`.
template <int kFirst, class V>
CNNFAST_INLINE V every_second(V a, V b) {
  return [&]<int... kLane>(std::integer_sequence<int, kLane...>) CNNFAST_INLINE_LAMBDA {
    return __builtin_shufflevector(a, b, (kFirst + 2 * kLane)...);
  }(std::make_integer_sequence<int, kLanesOf<V>>{});
}

// Lanes kFirst / 2 ... of `even` and `odd`, in turn.
template <int kFirst, class V>
CNNFAST_INLINE V in_turn(V even, V odd) {
  return [&]<int... kLane>(std::integer_sequence<int, kLane...>) CNNFAST_INLINE_LAMBDA {
    return __builtin_shufflevector(even, odd, ((kFirst + kLane) / 2 + (kLane % 2 == 0 ? 0 : kLanesOf<V>))...);
  }(std::make_integer_sequence<int, kLanesOf<V>>{});
}

template <class F, class Bits>
CNNFAST_INLINE F widen(Bits bits, bfloat16) {
  using Wide = Lanes<uint32_t, kLanesOf<F>>;
  return reinterpret_cast<F>(__builtin_convertvector(bits, Wide) << 16);
}
// As number.h's load, lane by lane.
template <class F, class Bits>
CNNFAST_INLINE F widen(Bits bits, float16) {
#if defined(__F16C__)
  if constexpr (sizeof(F) == 32) return _mm256_cvtph_ps(reinterpret_cast<__m128i>(bits));
#endif
  using Wide = Lanes<uint32_t, kLanesOf<F>>;
  const Wide h = __builtin_convertvector(bits, Wide);
  const Wide sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  const Wide subnormal = reinterpret_cast<Wide>(reinterpret_cast<F>(0x38800000u | magnitude << 13) - 0x1p-14f);
  const Wide normal = (magnitude << 13) + 0x38000000u, special = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  return reinterpret_cast<F>(sign | (magnitude < 0x0400u ? subnormal : magnitude >= 0x7c00u ? special : normal));
}

// Registers of a storage type's elements, as they lie in memory; V is what they become.
template <class T, class V>
struct BitsOf {
  using type = Lanes<uint16_t, kLanesOf<V>>;
};
template <class V>
struct BitsOf<float, V> {
  using type = V;
};
template <class V>
struct BitsOf<double, V> {
  using type = V;
};

template <class V, class T>
CNNFAST_INLINE V from_bits(typename BitsOf<T, V>::type bits) {
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    return bits;
  } else {
    return widen<V>(bits, T{});
  }
}

// A register of p[0], p[kStep], p[2 * kStep], ...
template <int kStep, class V, class T>
CNNFAST_INLINE V load_lanes(const T* p) {
  static_assert(kStep == 1 || kStep == 2);
  using Bits = typename BitsOf<T, V>::type;
  constexpr int kCount = kLanesOf<V>;
  const Bits first = load_bits<Bits>(p);
  if constexpr (kStep == 1 || kCount == 1) {
    return from_bits<V, T>(first);
  } else {
    // Its second half is loaded one element early, so that nothing is read beyond the last element wanted.
    return from_bits<V, T>([&]<int... kLane>(std::integer_sequence<int, kLane...>) CNNFAST_INLINE_LAMBDA {
      return __builtin_shufflevector(first, load_bits<Bits>(p + kCount - 1),
                                     (2 * kLane + (2 * kLane < kCount ? 0 : 1))...);
    }(std::make_integer_sequence<int, kCount>{}));
  }
}

// even = p[0], p[2], ... and odd = p[1], p[3], ...
template <class V, class T>
CNNFAST_INLINE void load_even_odd(const T* p, V& even, V& odd) {
  using Bits = typename BitsOf<T, V>::type;
  const Bits low = load_bits<Bits>(p), high = load_bits<Bits>(p + kLanesOf<V>);
  even = from_bits<V, T>(every_second<0>(low, high));
  odd = from_bits<V, T>(every_second<1>(low, high));
}

// As number.h's store, lane by lane.
template <class V>
CNNFAST_INLINE auto narrow(V v, bfloat16) {
  using Wide = Lanes<uint32_t, kLanesOf<V>>;
  const Wide b = reinterpret_cast<Wide>(v), rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return __builtin_convertvector((b & 0x7fffffffu) > 0x7f800000u ? b >> 16 | 0x40u : rounded,
                                 Lanes<uint16_t, kLanesOf<V>>);
}
template <class V>
CNNFAST_INLINE auto narrow(V v, float16) {
  using Bits = Lanes<uint16_t, kLanesOf<V>>;
#if defined(__F16C__)
  if constexpr (sizeof(V) == 32)
    return reinterpret_cast<Bits>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  Bits bits;
  for (int lane = 0; lane < kLanesOf<V>; ++lane) {
    float16 h;
    store(&h, v[lane]);
    bits[lane] = h.bits;
  }
  return bits;
}

template <class T, class V>
CNNFAST_INLINE void store_lanes(T* p, V v) {
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    std::memcpy(p, &v, sizeof v);
  } else {
    const auto bits = narrow(v, T{});
    std::memcpy(p, &bits, sizeof bits);
  }
}

// p[0], p[2], ... = even and p[1], p[3], ... = odd.
template <class T, class V>
CNNFAST_INLINE void store_even_odd(T* p, V even, V odd) {
  store_lanes(p, in_turn<0>(even, odd));
  store_lanes(p + kLanesOf<V>, in_turn<kLanesOf<V>>(even, odd));
}

// Calls block(Constant<lanes>{}, i) for starts of registers that cover [begin, end), or one(i) for each i where the
// range is too short for any. The last block overlaps the one before it: both write the same values.
template <class T, class Block, class One>
CNNFAST_INLINE void for_each_block(int64_t begin, int64_t end, const Block& block, const One& one) {
  const auto cover = [&](auto lanes) CNNFAST_INLINE_LAMBDA {
    constexpr int64_t kWidth = lanes.value;
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) block(lanes, i);
    if (i < end) block(lanes, end - kWidth);
  };
  if (end - begin >= kComputeLanes<T>) return cover(Constant<kComputeLanes<T>>{});
  if (end - begin >= kShortLanes<T>) return cover(Constant<kShortLanes<T>>{});
  for (int64_t i = begin; i < end; ++i) one(i);
}

// The output columns that registers take: all of their taps lie inside the input, where adjacent ones of its columns
// are adjacent in memory and stride_w is 1 or 2.
static inline Range register_columns(const Pool2dShape& s, int64_t column_stride) {
  const int64_t last = s.W + s.pad_w - s.dilation_w * (s.S - 1) - 1;  // the largest q * stride_w that fits
  if (column_stride != 1 || s.stride_w > 2 || last < 0) return {s.Q, s.Q};
  const int64_t begin = min(ceil_div(s.pad_w, s.stride_w), s.Q);
  return {begin, max(begin, min(last / s.stride_w + 1, s.Q))};
}

// Calls whole(Constant<stride_w>{}, Constant<lanes>{}, q) for registers of output columns from q on, in `inner`, and
// one(q) for single columns, so that all Q are covered.
template <class T, class Whole, class One>
CNNFAST_INLINE void for_each_column(int64_t Q, int64_t stride_w, Range inner, const Whole& whole, const One& one) {
  for (int64_t q = 0; q < inner.begin; ++q) one(q);
  const auto blocks = [&](auto step) CNNFAST_INLINE_LAMBDA {
    for_each_block<T>(
        inner.begin, inner.end, [&](auto lanes, int64_t q) CNNFAST_INLINE_LAMBDA { whole(step, lanes, q); }, one);
  };
  if (stride_w == 1) {
    blocks(Constant<1>{});
  } else {
    blocks(Constant<2>{});
  }
  for (int64_t q = inner.end; q < Q; ++q) one(q);
}

// The windows, along one dimension and without dilation, that cover a position: [begin, end).
class CoveringWindows {
 public:
  CoveringWindows(int64_t kernel, int64_t stride, int64_t pad, int64_t outputs)
      : kernel_(kernel), stride_(stride), pad_(pad), outputs_(outputs) {}

  CNNFAST_INLINE Range at(int64_t position) const {
    const int64_t begin = divided(max<int64_t>(position + pad_ - kernel_ + stride_, 0));
    const int64_t end = min(divided(position + pad_) + 1, outputs_);
    return {min(begin, end), end};
  }
  // The same without a division, for positions in order.
  CNNFAST_INLINE Range move_to(int64_t position) {
    while (moved_.end < outputs_ && tap(position, moved_.end) >= 0) ++moved_.end;
    while (moved_.begin < moved_.end && tap(position, moved_.begin) >= kernel_) ++moved_.begin;
    return moved_;
  }
  // Which tap of a window the position is.
  CNNFAST_INLINE int64_t tap(int64_t position, int64_t window) const { return position + pad_ - window * stride_; }

 private:
  CNNFAST_INLINE int64_t divided(int64_t position) const {
    return stride_ == 1 ? position : stride_ == 2 ? position >> 1 : position / stride_;
  }

  int64_t kernel_, stride_, pad_, outputs_;
  Range moved_{0, 0};
};

// Calls part(n, c, first, last) for the rows [first, last) of each plane that rows [begin, end) of N * C *
// rows_per_plane have a share in.
template <class Part>
CNNFAST_INLINE void for_each_plane(int64_t begin, int64_t end, int64_t channels, int64_t rows_per_plane,
                                   const Part& part) {
  const int64_t plane = begin / rows_per_plane;
  int64_t n = plane / channels, c = plane % channels, first = begin % rows_per_plane;
  while (begin < end) {
    const int64_t last = min(rows_per_plane, first + end - begin);
    part(n, c, first, last);
    begin += last - first;
    first = 0;
    if (++c == channels) c = 0, ++n;
  }
}

}  // namespace cnnfast::CNNFAST_ISA
