// The instructions of csrc/cuda/kernels/tensor_core.h, element by element as the PTX ISA's tables place them.
#pragma once

#include <bit>
#include <cmath>

#include "common/number.h"
#include "emulation.h"

namespace cnnfast {
namespace emulation {

struct Multiply {
  float* sums;
  const uint32_t *a, *b;
};

// Element `half` of a register, as a float; `kHalves` are in one.
inline float element(tf32, uint32_t bits, int) { return bits_float(bits); }
inline float element(float16, uint32_t bits, int half) {
  const float16 x{static_cast<uint16_t>(bits >> (16 * half))};
  return load(&x);
}
inline float element(bfloat16, uint32_t bits, int half) {
  const bfloat16 x{static_cast<uint16_t>(bits >> (16 * half))};
  return load(&x);
}

// Fragments of mma.m16n8k8 of tf32 and m16n8k16 of 16-bit types. Sums are kept in double, for hardware has an order and
// a rounding of its own, which no test may rely on.
template <class E>
void multiply_warp(void* const* operands) {
  constexpr int kHalves = sizeof(E) == 2 ? 2 : 1, kSteps = 8 * kHalves;
  const auto lane = [&](int i) -> const Multiply& { return *static_cast<Multiply*>(operands[i]); };
  float a[16][kSteps], b[kSteps][8];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kSteps; ++k) {
      const int owner = row % 8 * 4 + k / kHalves % 4, place = row / 8 + 2 * (k / (4 * kHalves));
      a[row][k] = element(E{}, lane(owner).a[place], k % kHalves);
    }
  for (int k = 0; k < kSteps; ++k)
    for (int column = 0; column < 8; ++column) {
      const int owner = column * 4 + k / kHalves % 4;
      b[k][column] = element(E{}, lane(owner).b[k / (4 * kHalves)], k % kHalves);
    }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float& to = lane(row % 8 * 4 + column / 2).sums[column % 2 + 2 * (row / 8)];
      double sum = static_cast<double>(to);
      for (int k = 0; k < kSteps; ++k) sum += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
      to = static_cast<float>(sum);
    }
}

struct LoadMatrices {
  uint32_t* results;
  const unsigned char* row;
};
template <bool kTransposed>
void load_warp(void* const* operands) {
  const auto lane = [&](int i) -> const LoadMatrices& { return *static_cast<LoadMatrices*>(operands[i]); };
  for (int i = 0; i < 32; ++i)
    for (int matrix = 0; matrix < 4; ++matrix)
      for (int half = 0; half < 2; ++half) {
        const int row = i / 4, column = i % 4 * 2 + half;
        const int from_row = kTransposed ? column : row, from_column = kTransposed ? row : column;
        std::memcpy(reinterpret_cast<unsigned char*>(lane(i).results + matrix) + 2 * half,
                    lane(8 * matrix + from_row).row + 2 * from_column, 2);
      }
}

inline void load_matrices(uint32_t* results, const void* row, void (*compute)(void* const*), const Site& site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) violation("a row of ldmatrix is not 16-byte aligned", site);
  LoadMatrices operand{results, static_cast<const unsigned char*>(row)};
  whole_warp(&operand, compute, site);
}

}  // namespace emulation

template <class E>
void multiply(E, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              const std::source_location& site = std::source_location::current()) {
  if constexpr (sizeof(E) == 4)
    if (((a[0] | a[1] | a[2] | a[3] | b0 | b1) & 0x1fffu) != 0)
      emulation::violation("an operand of mma is not rounded to tf32", site);
  const uint32_t b[2] = {b0, b1};
  emulation::Multiply operand{sums, a, b};
  emulation::whole_warp(&operand, emulation::multiply_warp<E>, site);
}

inline uint32_t to_tf32(uint32_t bits) {
  const bool special = (bits & 0x7f800000u) == 0x7f800000u;
  if (special) return (bits & 0x007fffffu) != 0 ? 0x7fffe000u : bits;
  return (bits + 0x1000u) & ~0x1fffu;
}

inline void load_matrices(uint32_t (&results)[4], const void* row,
                          const std::source_location& site = std::source_location::current()) {
  emulation::load_matrices(results, row, emulation::load_warp<false>, site);
}
inline void load_transposed_matrices(uint32_t (&results)[4], const void* row,
                                     const std::source_location& site = std::source_location::current()) {
  emulation::load_matrices(results, row, emulation::load_warp<true>, site);
}

inline void copy_async(void* to, const void* from, bool present,
                       const std::source_location& site = std::source_location::current()) {
  emulation::copy_async(to, from, present, site);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int kPending>
void wait_for_copies() {
  emulation::wait_for_copies(kPending);
}

}  // namespace cnnfast
