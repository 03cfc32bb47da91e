// Registers of Compute<T> from and to memory of a storage type T: float16 and bfloat16 are converted on the way, lane
// by lane as common/number.h's load and store do.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

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
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 64) return _mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(bits));
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

// Every second element of `first` and then of `second`, which begins with the last one of `first`: so that of two
// registers' memory nothing is read beyond the last element wanted.
template <class V>
CNNFAST_INLINE V every_second_overlapped(V first, V second) {
  constexpr int kCount = kLanesOf<V>;
  return [&]<int... kLane>(std::integer_sequence<int, kLane...>) CNNFAST_INLINE_LAMBDA {
    return __builtin_shufflevector(first, second, (2 * kLane + (2 * kLane < kCount ? 0 : 1))...);
  }(std::make_integer_sequence<int, kCount>{});
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
    return from_bits<V, T>(every_second_overlapped(first, load_bits<Bits>(p + kCount - 1)));
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
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64)
    return reinterpret_cast<Bits>(_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
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

}  // namespace cnnfast::CNNFAST_ISA
