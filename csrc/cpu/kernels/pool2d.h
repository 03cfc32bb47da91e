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

// As many 16-bit elements as a register has floats.
typedef uint16_t HalfBits __attribute__((vector_size(CNNFAST_VECTOR_BYTES / 2)));

template <class V>
CNNFAST_INLINE V load_bits(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Lanes 0, 2, 4, ... of `a` followed by `b`, where b is loaded one element early so that nothing is read beyond the
// last element wanted.
template <class V>
CNNFAST_INLINE V every_second(V a, V b) {
  if constexpr (sizeof(V) / sizeof(a[0]) == 2) {
    return __builtin_shufflevector(a, b, 0, 3);
  } else if constexpr (sizeof(V) / sizeof(a[0]) == 4) {
    return __builtin_shufflevector(a, b, 0, 2, 5, 7);
  } else if constexpr (sizeof(V) / sizeof(a[0]) == 8) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 9, 11, 13, 15);
  } else {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
  }
}

template <int kStep, class V, class T>
CNNFAST_INLINE V load_strided_bits(const T* p) {
  static_assert(kStep == 1 || kStep == 2);
  if constexpr (kStep == 1) {
    return load_bits<V>(p);
  } else {
    return every_second(load_bits<V>(p), load_bits<V>(p + sizeof(V) / sizeof(T) - 1));
  }
}

CNNFAST_INLINE Vec<float> widen(HalfBits bits, bfloat16) {
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(bits, Vec<uint32_t>) << 16);
}
// As number.h's load, lane by lane.
CNNFAST_INLINE Vec<float> widen(HalfBits bits, float16) {
  const Vec<uint32_t> h = __builtin_convertvector(bits, Vec<uint32_t>);
  const Vec<uint32_t> sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  const Vec<uint32_t> subnormal =
      reinterpret_cast<Vec<uint32_t>>(reinterpret_cast<Vec<float>>(0x38800000u | magnitude << 13) - 0x1p-14f);
  const Vec<uint32_t> normal = (magnitude << 13) + 0x38000000u, special = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  return reinterpret_cast<Vec<float>>(sign | (magnitude < 0x0400u    ? subnormal
                                              : magnitude >= 0x7c00u ? special
                                                                     : normal));
}

// A register of p[0], p[kStep], p[2 * kStep], ...
template <int kStep, class T>
CNNFAST_INLINE ComputeVec<T> load_lanes(const T* p) {
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    return load_strided_bits<kStep, Vec<T>>(p);
  } else {
    return widen(load_strided_bits<kStep, HalfBits>(p), T{});
  }
}

template <class T>
CNNFAST_INLINE void store_lanes(T* p, ComputeVec<T> v) {
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    store_vec(p, v);
  } else {
    for (int lane = 0; lane < kComputeLanes<T>; ++lane) store(p + lane, v[lane]);
  }
}

// Calls block(i) for starts of whole registers that cover [begin, end), or one(i) for each i where the range is too
// short for a register. The last block overlaps the one before it: both write the same values.
template <int kWidth, class Block, class One>
CNNFAST_INLINE void for_each_block(int64_t begin, int64_t end, const Block& block, const One& one) {
  if (end - begin < kWidth) {
    for (int64_t i = begin; i < end; ++i) one(i);
    return;
  }
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) block(i);
  if (i < end) block(end - kWidth);
}

// Calls whole(Constant<stride_w>, q) for registers of output columns from q on and one(q) for single columns, so that
// all Q are covered. Registers take columns all of whose taps lie inside the input, where adjacent ones of its columns
// are adjacent in memory and stride_w is 1 or 2.
template <int kWidth, class Whole, class One>
CNNFAST_INLINE void for_each_column(const Pool2dShape& s, int64_t column_stride, const Whole& whole, const One& one) {
  Range inner{s.Q, s.Q};
  const int64_t last = s.W + s.pad_w - s.dilation_w * (s.S - 1) - 1;  // the largest q * stride_w that fits
  if (column_stride == 1 && s.stride_w <= 2 && last >= 0) {
    const int64_t log2_stride = s.stride_w - 1;  // a division would cost as much as the row
    inner.begin = min((s.pad_w + log2_stride) >> log2_stride, s.Q);
    inner.end = max(inner.begin, min((last >> log2_stride) + 1, s.Q));
  }
  for (int64_t q = 0; q < inner.begin; ++q) one(q);
  if (s.stride_w == 1) {
    for_each_block<kWidth>(
        inner.begin, inner.end, [&](int64_t q) CNNFAST_INLINE_LAMBDA { whole(Constant<1>{}, q); }, one);
  } else {
    for_each_block<kWidth>(
        inner.begin, inner.end, [&](int64_t q) CNNFAST_INLINE_LAMBDA { whole(Constant<2>{}, q); }, one);
  }
  for (int64_t q = inner.end; q < s.Q; ++q) one(q);
}

// Calls row(n, c, h) for rows [begin, end) of N * C * rows_per_plane.
template <class Row>
void for_each_plane_row(int64_t begin, int64_t end, int64_t channels, int64_t rows_per_plane, const Row& row) {
  int64_t plane = begin / rows_per_plane, h = begin % rows_per_plane;
  int64_t n = plane / channels, c = plane % channels;
  for (int64_t i = begin; i < end; ++i) {
    row(n, c, h);
    if (++h < rows_per_plane) continue;
    h = 0;
    if (++c < channels) continue;
    c = 0;
    ++n;
  }
}

}  // namespace cnnfast::CNNFAST_ISA
