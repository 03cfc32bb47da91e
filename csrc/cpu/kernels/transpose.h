// Transposes of blocks in registers, and of whole matrices in blocks.
#pragma once

#include "cpu/kernels/constant.h"
#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Of each 16 bytes of a and b, the units of the lower half (or the upper) in turn. These shuffles alone stay within
// their 16 bytes, so that wider registers transpose several blocks at the price of one.
template <class Unit, bool kUpper, class V>
CNNFAST_INLINE V interleave(V a, V b) {
  constexpr int kUnits = sizeof(V) / sizeof(Unit), kPart = 16 / sizeof(Unit);
  using Units = Lanes<Unit, kUnits>;
  return [&]<int... kUnit>(std::integer_sequence<int, kUnit...>) CNNFAST_INLINE_LAMBDA {
    return reinterpret_cast<V>(__builtin_shufflevector(
        reinterpret_cast<Units>(a), reinterpret_cast<Units>(b),
        (kUnit / kPart * kPart + (kUpper ? kPart / 2 : 0) + kUnit % kPart / 2 + kUnit % 2 * kUnits)...));
  }(std::make_integer_sequence<int, kUnits>{});
}

// Of each 16 bytes of the registers, four by four elements, transposed.
template <class V>
CNNFAST_INLINE void transpose_parts(V (&v)[4]) {
  const V ab_lower = interleave<float, false>(v[0], v[1]), ab_upper = interleave<float, true>(v[0], v[1]);
  const V cd_lower = interleave<float, false>(v[2], v[3]), cd_upper = interleave<float, true>(v[2], v[3]);
  v[0] = interleave<double, false>(ab_lower, cd_lower);
  v[1] = interleave<double, true>(ab_lower, cd_lower);
  v[2] = interleave<double, false>(ab_upper, cd_upper);
  v[3] = interleave<double, true>(ab_upper, cd_upper);
}

// A block of kBlockSide x kBlockSide elements, transposed: rows of 16 bytes for 4-byte elements, of 8 for bytes.
template <class T>
constexpr int kBlockSide = sizeof(T) == 4 ? 4 : 8;

template <class T>
CNNFAST_INLINE void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  if constexpr (sizeof(T) == 4) {
    Lanes<T, 4> v[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) std::memcpy(&v[b], from + b * from_stride, sizeof v[b]);
    transpose_parts(v);
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) std::memcpy(to + b * to_stride, &v[b], sizeof v[b]);
  } else {
    static_assert(sizeof(T) == 1);
    typedef T Block __attribute__((vector_size(16)));
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

// The 16-byte parts of a register from and to every fourth of some rows: part p is at p * 4 * stride.
template <int kCount = kLanes<float>>
CNNFAST_INLINE Lanes<float, kCount> load_parts(const float* from, int64_t stride) {
  if constexpr (kCount == 4) {
    Lanes<float, 4> part;
    std::memcpy(&part, from, sizeof part);
    return part;
  } else {
    const auto lower = load_parts<kCount / 2>(from, stride);
    const auto upper = load_parts<kCount / 2>(from + kCount / 2 * stride, stride);
    return [&]<int... kLane>(std::integer_sequence<int, kLane...>) CNNFAST_INLINE_LAMBDA {
      return __builtin_shufflevector(lower, upper, kLane...);
    }(std::make_integer_sequence<int, kCount>{});
  }
}

// 16 bytes of a register. (Spelled out because gcc 12 permutes a shuffle's whole register first.)
template <int kPart>
CNNFAST_INLINE Lanes<float, 4> part_of(Vec<float> v) {
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  return _mm512_maskz_extractf32x4_ps(0xf, v, kPart);  // plain _mm512_extractf32x4_ps warns
#elif defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  return _mm256_extractf128_ps(v, kPart);
#else
  return __builtin_shufflevector(v, v, 4 * kPart, 4 * kPart + 1, 4 * kPart + 2, 4 * kPart + 3);
#endif
}

// The first kColumns elements of each part only.
template <int kColumns>
CNNFAST_INLINE void store_parts(Vec<float> v, float* to, int64_t stride) {
  unroll<kLanes<float> / 4>([&](auto index) CNNFAST_INLINE_LAMBDA {
    const Lanes<float, 4> part = part_of<index.value>(v);
    std::memcpy(to + index.value * 4 * stride, &part, kColumns * sizeof(float));
  });
}

// to[i][lane] = from[lane * stride + i], i < kColumns
template <int kColumns>
CNNFAST_INLINE void load_transposed(const float* from, int64_t stride, Vec<float>* to) {
  static_assert(kColumns % 4 == 0);
#pragma GCC unroll 4
  for (int j = 0; j < kColumns; j += 4) {
    Vec<float> v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) v[i] = load_parts(from + i * stride + j, stride);
    transpose_parts(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) to[j + i] = v[i];
  }
}

// to[lane * stride + i] = from[i][lane], i < kColumns
template <int kColumns = 4, int kRegisters>
CNNFAST_INLINE void store_transposed(const Vec<float> (&from)[kRegisters], float* to, int64_t stride) {
  static_assert(kColumns <= kRegisters && kRegisters <= 4);
  Vec<float> v[4]{};
  unroll<kRegisters>([&](auto i) CNNFAST_INLINE_LAMBDA { v[i.value] = from[i.value]; });
  transpose_parts(v);  // lanes 0 and 4, 1 and 5, ...
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) store_parts<kColumns>(v[i], to + i * stride, stride);
}

// to[column][row] = from[row][column] for 8 rows of 4 columns: with AVX, two blocks side by side, half the shuffles and
// stores of one after the other. (Inserted from memory as in load_transposed, a first layer takes 3 % longer.)
CNNFAST_INLINE void transpose_8x4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__AVX2__)
  __m256 v[4];  // rows b and b + 4
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) {
    Lanes<float, 4> lower, upper;
    std::memcpy(&lower, from + b * from_stride, sizeof lower);
    std::memcpy(&upper, from + (b + 4) * from_stride, sizeof upper);
    v[b] = __builtin_shufflevector(lower, upper, 0, 1, 2, 3, 4, 5, 6, 7);
  }
  transpose_parts(v);
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) _mm256_storeu_ps(to + b * to_stride, v[b]);
#else
  transpose_block(from, from_stride, to, to_stride);
  transpose_block(from + 4 * from_stride, from_stride, to + 4, to_stride);
#endif
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
