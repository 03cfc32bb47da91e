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
#endif

// The first `count` lanes only (0 <= count <= lanes); other lanes read as zero and are not touched in memory.
template <class T>
CNNFAST_INLINE Vec<T> load_partial(const T* p, int64_t count) {
#if defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float>) return _mm256_maskload_ps(p, first_of_eight(count));
#endif
  Vec<T> v{};
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(T));
  return v;
}
template <class T>
CNNFAST_INLINE void store_partial(T* p, Vec<T> v, int64_t count) {
#if defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float>) return _mm256_maskstore_ps(p, first_of_eight(count), v);
#endif
  std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(T));
}

// Lane i: p[i * stride].
CNNFAST_INLINE Vec<float> load_strided(const float* p, int64_t stride) {
  Vec<float> v{};
  for (int lane = 0; lane < kLanes<float>; ++lane) v[lane] = p[lane * stride];
  return v;
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

// even[i] = from[2 * i] and odd[i] = from[2 * i + 1], i < count. In blocks of 4, of which the last overlaps its
// neighbour. (Registers of 32 bytes would need shuffles across their halves, which cost more than they save.)
CNNFAST_INLINE void split_even_odd(const float* from, float* even, float* odd, int64_t count) {
  typedef float Block __attribute__((vector_size(16)));
  if (count < 4) {
    for (int64_t i = 0; i < count; ++i) even[i] = from[2 * i], odd[i] = from[2 * i + 1];
    return;
  }
  for (int64_t i = 0; i < count; i += 4) {
    if (i + 4 > count) i = count - 4;
    Block low, high;
    std::memcpy(&low, from + 2 * i, sizeof low);
    std::memcpy(&high, from + 2 * i + 4, sizeof high);
    const Block evens = __builtin_shufflevector(low, high, 0, 2, 4, 6);
    const Block odds = __builtin_shufflevector(low, high, 1, 3, 5, 7);
    std::memcpy(even + i, &evens, sizeof evens);
    std::memcpy(odd + i, &odds, sizeof odds);
  }
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

// A block of kBlockSide x kBlockSide elements, transposed: rows of 16 bytes for 4-byte elements, of 8 for bytes.
template <class T>
constexpr int kBlockSide = sizeof(T) == 4 ? 4 : 8;

template <class T>
CNNFAST_INLINE void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  typedef T Block __attribute__((vector_size(16)));
  if constexpr (sizeof(T) == 4) {
    Block row[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) std::memcpy(&row[b], from + b * from_stride, sizeof(Block));
    const Block ab_low = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
    const Block ab_high = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
    const Block cd_low = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
    const Block cd_high = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
    const Block column[4] = {
        __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
        __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) std::memcpy(to + b * to_stride, &column[b], sizeof(Block));
  } else {
    static_assert(sizeof(T) == 1);
    // Through 64-bit integers: a partial copy into a register goes through memory.
    typedef uint16_t Pairs __attribute__((vector_size(16)));
    typedef uint32_t Fours __attribute__((vector_size(16)));
    typedef uint64_t Words __attribute__((vector_size(16)));
    const auto row = [&](int64_t b) CNNFAST_INLINE_LAMBDA {
      uint64_t word;
      std::memcpy(&word, from + b * from_stride, sizeof word);
      return reinterpret_cast<Block>(Words{word, 0});
    };
    Pairs pair[4];  // of rows 2b and 2b + 1, column by column
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      pair[b] = reinterpret_cast<Pairs>(
          __builtin_shufflevector(row(2 * b), row(2 * b + 1), 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    }
    Fours low[2], high[2];  // of rows 4b to 4b + 3: columns 0 to 3, 4 to 7
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b) {
      low[b] = reinterpret_cast<Fours>(__builtin_shufflevector(pair[2 * b], pair[2 * b + 1], 0, 8, 1, 9, 2, 10, 3, 11));
      high[b] =
          reinterpret_cast<Fours>(__builtin_shufflevector(pair[2 * b], pair[2 * b + 1], 4, 12, 5, 13, 6, 14, 7, 15));
    }
    const Fours column[4] = {
        __builtin_shufflevector(low[0], low[1], 0, 4, 1, 5), __builtin_shufflevector(low[0], low[1], 2, 6, 3, 7),
        __builtin_shufflevector(high[0], high[1], 0, 4, 1, 5), __builtin_shufflevector(high[0], high[1], 2, 6, 3, 7)};
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const Words words = reinterpret_cast<Words>(column[b]);
      const uint64_t first = words[0], second = words[1];
      std::memcpy(to + 2 * b * to_stride, &first, sizeof first);
      std::memcpy(to + (2 * b + 1) * to_stride, &second, sizeof second);
    }
  }
}

#if defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
// Of each half of the registers, four by four elements, transposed.
CNNFAST_INLINE void transpose_halves(__m256 (&v)[4]) {
  const __m256 ab_low = _mm256_unpacklo_ps(v[0], v[1]), ab_high = _mm256_unpackhi_ps(v[0], v[1]);
  const __m256 cd_low = _mm256_unpacklo_ps(v[2], v[3]), cd_high = _mm256_unpackhi_ps(v[2], v[3]);
  v[0] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
  v[1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
  v[2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
  v[3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
}
#endif

// to[i][lane] = from[lane * stride + i], i < kLanes
CNNFAST_INLINE void load_transposed(const float* from, int64_t stride, Vec<float> (&to)[kLanes<float>]) {
#if defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half, from += 4) {
    __m256 v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      v[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from + i * stride)),
                                  _mm_loadu_ps(from + (i + 4) * stride), 1);
    transpose_halves(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) to[4 * half + i] = v[i];
  }
#else
  for (int i = 0; i < kLanes<float>; ++i) to[i] = load_strided(from + i, stride);
#endif
}

// to[lane * stride + i] = from[i][lane]
CNNFAST_INLINE void store_transposed(const Vec<float> (&from)[4], float* to, int64_t stride) {
#if defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  __m256 lane[4] = {from[0], from[1], from[2], from[3]};
  transpose_halves(lane);  // lanes 0 and 4, 1 and 5, ...
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_ps(to + i * stride, _mm256_castps256_ps128(lane[i]));
    _mm_storeu_ps(to + (i + 4) * stride, _mm256_extractf128_ps(lane[i], 1));
  }
#else
  for (int lane = 0; lane < kLanes<float>; ++lane)
    for (int i = 0; i < 4; ++i) to[lane * stride + i] = from[i][lane];
#endif
}

// to[column][row] = from[row][column] for 8 rows of 4 columns: two blocks side by side in registers of 32 bytes, half
// the shuffles and stores of one after the other.
CNNFAST_INLINE void transpose_8x4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  typedef float Half __attribute__((vector_size(16)));
  typedef float Whole __attribute__((vector_size(32)));
  Whole row[4];  // rows b and b + 4
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) {
    Half low, high;
    std::memcpy(&low, from + b * from_stride, sizeof low);
    std::memcpy(&high, from + (b + 4) * from_stride, sizeof high);
    row[b] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
  }
  const Whole ab_low = __builtin_shufflevector(row[0], row[1], 0, 8, 1, 9, 4, 12, 5, 13);
  const Whole ab_high = __builtin_shufflevector(row[0], row[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const Whole cd_low = __builtin_shufflevector(row[2], row[3], 0, 8, 1, 9, 4, 12, 5, 13);
  const Whole cd_high = __builtin_shufflevector(row[2], row[3], 2, 10, 3, 11, 6, 14, 7, 15);
  const Whole column[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 8, 9, 4, 5, 12, 13),
                           __builtin_shufflevector(ab_low, cd_low, 2, 3, 10, 11, 6, 7, 14, 15),
                           __builtin_shufflevector(ab_high, cd_high, 0, 1, 8, 9, 4, 5, 12, 13),
                           __builtin_shufflevector(ab_high, cd_high, 2, 3, 10, 11, 6, 7, 14, 15)};
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) std::memcpy(to + b * to_stride, &column[b], sizeof(Whole));
}

// to[column][row] = from[row][column], both dense in their last dimension. In blocks, the last row and column of which
// overlap their neighbours.
template <class T>
CNNFAST_INLINE void transpose(const T* __restrict from, int64_t from_stride, int64_t rows, int64_t columns,
                              T* __restrict to, int64_t to_stride) {
  if (rows == 1 && to_stride == 1) return copy_row(from, to, columns);
  if (columns == 1 && from_stride == 1) return copy_row(from, to, rows);
  constexpr int64_t kSide = kBlockSide<T>;
  if (rows >= kSide && columns >= kSide) {
    for (int64_t i = 0; i < rows; i += kSide) {
      if (i + kSide > rows) i = rows - kSide;
      for (int64_t j = 0; j < columns; j += kSide) {
        if (j + kSide > columns) j = columns - kSide;
        transpose_block(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
      }
    }
    return;
  }
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i) to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace cnnfast::CNNFAST_ISA
