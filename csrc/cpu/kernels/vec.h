// Vec<T>: a register of CNNFAST_VECTOR_BYTES, over the compilers' vector extension.
//
// Included only by isa/*.cpp, which define CNNFAST_ISA (the namespace everything lives in, so that no two
// instruction sets ever share a symbol) and CNNFAST_VECTOR_BYTES. Arithmetic is written with plain operators;
// a * b + c contracts to one FMA where the target has it (-ffp-contract=fast).
#pragma once

#if !defined(CNNFAST_ISA) || !defined(CNNFAST_VECTOR_BYTES)
#error "vec.h is for isa/*.cpp: define CNNFAST_ISA and CNNFAST_VECTOR_BYTES first"
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/activation.h"
#include "common/number.h"
#include "common/shape.h"

namespace cnnfast::CNNFAST_ISA {

template <class T>
struct VecType {
  typedef T type __attribute__((vector_size(CNNFAST_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecType<T>::type;

template <class T>
constexpr int kLanes = CNNFAST_VECTOR_BYTES / sizeof(T);

// kCount lanes of T, where a whole register is too many.
template <class T, int kCount>
struct LanesType {
  typedef T type __attribute__((vector_size(kCount * sizeof(T))));
};
template <class T, int kCount>
using Lanes = typename LanesType<T, kCount>::type;

// Registers as wide as a line of the cache, so that most loads that are not aligned count twice; AVX-512 has 32 of
// them.
constexpr bool kWideRegisters = CNNFAST_VECTOR_BYTES == 64;

// All lanes equal to x. (x - 0 is x for every x, so only the broadcast is left of the subtraction.)
template <class T>
CNNFAST_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// Unaligned load and store of a whole register.
template <class T>
CNNFAST_INLINE Vec<T> load_vec(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
CNNFAST_INLINE void store_vec(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

#if defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
// All bits of the first `count` of eight.
CNNFAST_INLINE __m256i first_of_eight(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#elif defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
// The first `count` of sixteen.
CNNFAST_INLINE __mmask16 first_of_sixteen(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
#endif

// The first `count` lanes only (0 <= count <= lanes); other lanes read as zero and are not touched in memory.
template <class T>
CNNFAST_INLINE Vec<T> load_partial(const T* p, int64_t count) {
#if defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float>) return _mm256_maskload_ps(p, first_of_eight(count));
#elif defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_loadu_ps(first_of_sixteen(count), p);
#endif
  Vec<T> v{};
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(T));
  return v;
}
template <class T>
CNNFAST_INLINE void store_partial(T* p, Vec<T> v, int64_t count) {
#if defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float>) return _mm256_maskstore_ps(p, first_of_eight(count), v);
#elif defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, first_of_sixteen(count), v);
#endif
  std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(T));
}

// Makes the compiler hold v in a register from here on. Left alone it folds a load that several multiply-adds share
// into each of them, and the load ports become the bound.
template <class V>
CNNFAST_INLINE void pin(V& v) {
#if defined(__x86_64__) && (CNNFAST_VECTOR_BYTES <= 16 || (CNNFAST_VECTOR_BYTES == 32 && defined(__AVX2__)) || \
                            (CNNFAST_VECTOR_BYTES == 64 && defined(__AVX512F__)))
  asm("" : "+v"(v));
#elif defined(__aarch64__) && CNNFAST_VECTOR_BYTES == 16
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

// Makes the compiler hold the pointer in a register, so that what follows is addressed by constant offsets from it.
// Left alone it folds the row pointers of a patch into one base and many computed indices.
template <class T>
CNNFAST_INLINE void hold(T*& pointer) {
  asm("" : "+r"(pointer));
}

// Keeps the compiler from carrying loaded values across: reloading a broadcast is cheaper than spilling a sum.
CNNFAST_INLINE void forget_loads() { asm volatile("" ::: "memory"); }

// a > b ? a : b, lane by lane: b where either is NaN. (Spelled out because gcc 12 does not find the instruction.)
CNNFAST_INLINE Vec<float> max_or_second(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  return _mm512_maskz_max_ps(0xffff, a, b);  // plain _mm512_max_ps warns in gcc 12
#elif defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// a < b ? a : b, likewise.
CNNFAST_INLINE Vec<float> min_or_second(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  return _mm512_maskz_min_ps(0xffff, a, b);
#elif defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// An activation that only clips, of registers.
template <class A>
struct Clip {
  Vec<A> low, high;

  Clip(A low, A high) : low(broadcast(low)), high(broadcast(high)) {}
  explicit Clip(Activation activation) : Clip(lowest_of<A>(activation), highest_of<A>(activation)) {}
  CNNFAST_INLINE Vec<A> operator()(Vec<A> x) const {
    if constexpr (std::is_same_v<A, float>) {
      return min_or_second(high, max_or_second(low, x));
    } else {
      x = low > x ? low : x;
      return high < x ? high : x;
    }
  }
};

template <int kDistance, int... kLane>
CNNFAST_INLINE Vec<float> rotate(Vec<float> v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, ((kLane + kDistance) % kLanes<float>)...);
}

// Every lane in one number, in a fixed order.
template <int kDistance = kLanes<float> / 2>
CNNFAST_INLINE float lane_sum(Vec<float> v) {
  if constexpr (kDistance == 0) {
    return v[0];
  } else {
    return lane_sum<kDistance / 2>(v + rotate<kDistance>(v, std::make_integer_sequence<int, kLanes<float>>{}));
  }
}

// Zeros for the lanes from `count` on.
CNNFAST_INLINE Vec<float> first_lanes(Vec<float> v, int64_t count) {
  Vec<int32_t> lane;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<float>; ++i) lane[i] = i;
  return lane < broadcast(static_cast<int32_t>(count)) ? v : Vec<float>{};
}

// Whether any lane of a comparison's result is set.
CNNFAST_INLINE bool any_lane(Vec<int32_t> mask) {
#if defined(__AVX2__) && !defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 32
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#elif defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#else
  int32_t any = 0;
  for (int lane = 0; lane < kLanes<int32_t>; ++lane) any |= mask[lane];
  return any != 0;
#endif
}

// Whether any lane is NaN.
template <class V>
CNNFAST_INLINE bool any_nan(V v) {
#if defined(__AVX2__)
  if constexpr (sizeof(v[0]) == 4 && sizeof v == 32) return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0;
  if constexpr (sizeof(v[0]) == 8 && sizeof v == 32) return _mm256_movemask_pd(_mm256_cmp_pd(v, v, _CMP_UNORD_Q)) != 0;
  if constexpr (sizeof(v[0]) == 4 && sizeof v == 16) return _mm_movemask_ps(_mm_cmp_ps(v, v, _CMP_UNORD_Q)) != 0;
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(v[0]) == 4 && sizeof v == 64) return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0;
#endif
  bool any = false;
  for (size_t lane = 0; lane < sizeof v / sizeof(v[0]); ++lane) any |= v[lane] != v[lane];
  return any;
}

// Integers, one for each byte from p on. (gcc 12 makes a chain of scalar instructions of a conversion.)
template <class Integers>
CNNFAST_INLINE Integers load_bytes(const uint8_t* p) {
  constexpr int kBytes = sizeof(Integers) / sizeof(Integers{}[0]);
#if defined(__AVX2__)
  const auto low = [&](auto word) CNNFAST_INLINE_LAMBDA {
    std::memcpy(&word, p, sizeof word);
    return _mm_cvtsi64_si128(static_cast<int64_t>(word));
  };
  if constexpr (sizeof(Integers) == 32 && kBytes == 8)
    return reinterpret_cast<Integers>(_mm256_cvtepu8_epi32(low(uint64_t{})));
  if constexpr (sizeof(Integers) == 16 && kBytes == 4)
    return reinterpret_cast<Integers>(_mm_cvtepu8_epi32(low(uint32_t{})));
  if constexpr (sizeof(Integers) == 32 && kBytes == 4)
    return reinterpret_cast<Integers>(_mm256_cvtepu8_epi64(low(uint32_t{})));
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(Integers) == 64 && kBytes == 16)
    return reinterpret_cast<Integers>(
        _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
  Integers lanes;
  for (int lane = 0; lane < kBytes; ++lane) lanes[lane] = p[lane];
  return lanes;
}

// Stores the low byte of each lane, in order.
template <class Integers>
CNNFAST_INLINE void store_low_bytes(uint8_t* p, Integers v) {
  constexpr int kBytes = sizeof(Integers) / sizeof(Integers{}[0]);
#if defined(__AVX2__)
  const __m128i front = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  if constexpr (sizeof(Integers) == 32 && kBytes == 8) {
    const __m256i wide = reinterpret_cast<__m256i>(v);
    const __m128i low = _mm_shuffle_epi8(_mm256_castsi256_si128(wide), front);
    const __m128i high = _mm_shuffle_epi8(_mm256_extracti128_si256(wide, 1), front);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(low, high));
    return;
  }
  if constexpr (sizeof(Integers) == 16 && kBytes == 4) {
    const int32_t bytes = _mm_cvtsi128_si32(_mm_shuffle_epi8(reinterpret_cast<__m128i>(v), front));
    std::memcpy(p, &bytes, sizeof bytes);
    return;
  }
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(Integers) == 64 && kBytes == 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(v)));
    return;
  }
#endif
  for (int lane = 0; lane < kBytes; ++lane) p[lane] = static_cast<uint8_t>(v[lane]);
}

// Bit i: whether p[i] == value, for kCount bytes, 32 or 64.
template <int kCount>
CNNFAST_INLINE uint64_t equal_bytes(const uint8_t* p, uint8_t value) {
#if defined(__AVX2__)
  const auto half = [&](const uint8_t* from) CNNFAST_INLINE_LAMBDA {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(static_cast<char>(value)))));
  };
  if constexpr (kCount == 32) return half(p);
  return half(p) | static_cast<uint64_t>(half(p + 32)) << 32;
#else
  uint64_t bits = 0;
  for (int i = 0; i < kCount; ++i) bits |= static_cast<uint64_t>(p[i] == value) << i;
  return bits;
#endif
}

// even[i] = from[2 * i] and odd[i] = from[2 * i + 1], i < count. In blocks, of which the last overlaps its neighbour.
// (Registers of 32 bytes would need shuffles across their halves, which cost more than they save.)
CNNFAST_INLINE void split_even_odd(const float* from, float* even, float* odd, int64_t count) {
  const auto blocks = [&](auto lanes) CNNFAST_INLINE_LAMBDA {
    constexpr int64_t kCount = decltype(lanes)::value;
    using Block = Lanes<float, kCount>;
    for (int64_t i = 0; i < count; i += kCount) {
      if (i + kCount > count) i = count - kCount;
      Block low, high;
      std::memcpy(&low, from + 2 * i, sizeof low);
      std::memcpy(&high, from + 2 * i + kCount, sizeof high);
      [&]<int... kLane>(std::integer_sequence<int, kLane...>) CNNFAST_INLINE_LAMBDA {
        const Block evens = __builtin_shufflevector(low, high, (2 * kLane)...);
        const Block odds = __builtin_shufflevector(low, high, (2 * kLane + 1)...);
        std::memcpy(even + i, &evens, sizeof evens);
        std::memcpy(odd + i, &odds, sizeof odds);
      }(std::make_integer_sequence<int, kCount>{});
    }
  };
#if CNNFAST_VECTOR_BYTES == 64
  if (count >= 16) return blocks(std::integral_constant<int, 16>{});
  if (count >= 8) return blocks(std::integral_constant<int, 8>{});
#endif
  if (count >= 4) return blocks(std::integral_constant<int, 4>{});
  for (int64_t i = 0; i < count; ++i) even[i] = from[2 * i], odd[i] = from[2 * i + 1];
}

// Copies `count` elements in whole chunks, the last overlapping its neighbour. (memcpy of a short row of unknown length
// is a library call.)
template <class T>
CNNFAST_INLINE void copy_row(const T* from, T* to, int64_t count) {
  const char* in = reinterpret_cast<const char*>(from);
  char* out = reinterpret_cast<char*>(to);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  const auto copy_chunks = [&](auto chunk) {
    const int64_t size = sizeof chunk;
    for (int64_t i = 0; i + size <= bytes; i += size) __builtin_memcpy(out + i, in + i, sizeof chunk);
    __builtin_memcpy(out + bytes - size, in + bytes - size, sizeof chunk);
  };
  if (bytes >= CNNFAST_VECTOR_BYTES && bytes <= 2 * CNNFAST_VECTOR_BYTES) {  // without the loop's overhead
    Vec<float> head, tail;
    __builtin_memcpy(&head, in, sizeof head);
    __builtin_memcpy(&tail, in + bytes - CNNFAST_VECTOR_BYTES, sizeof tail);
    __builtin_memcpy(out, &head, sizeof head);
    __builtin_memcpy(out + bytes - CNNFAST_VECTOR_BYTES, &tail, sizeof tail);
  } else if (bytes >= CNNFAST_VECTOR_BYTES) {
    copy_chunks(Vec<float>{});
  } else if (bytes >= 8) {
    copy_chunks(uint64_t{});
  } else {
    for (int64_t i = 0; i < bytes; ++i) out[i] = in[i];
  }
}

}  // namespace cnnfast::CNNFAST_ISA
