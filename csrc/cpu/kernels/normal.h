// Normal random numbers, a register at a time: Philox (common/philox.h), then Box and Muller's transform. Of float's
// accuracy: the largest difference from the transform in double is below 2e-6.
#pragma once

#include "common/philox.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

using Words = Vec<uint32_t>;

// a * b, 64 bits wide.
CNNFAST_INLINE void multiply_wide(Words a, uint32_t b, Words& high, Words& low) {
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  // The plain _mm512_mul_epu32 warns in gcc 12.
  const auto products = [&](Vec<uint64_t> words) CNNFAST_INLINE_LAMBDA {
    const __m512i factor = reinterpret_cast<__m512i>(broadcast(static_cast<uint64_t>(b)));
    return reinterpret_cast<Vec<uint64_t>>(_mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(words), factor));
  };
  const Vec<uint64_t> in = reinterpret_cast<Vec<uint64_t>>(a), even = products(in), odd = products(in >> 32);
  const uint64_t upper = 0xffffffff00000000u;
  low = reinterpret_cast<Words>((even & ~upper) | odd << 32);
  high = reinterpret_cast<Words>(even >> 32 | (odd & upper));
#elif defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(b)), in = reinterpret_cast<__m256i>(a);
  const __m256i even = _mm256_mul_epu32(in, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(in, 32), factor);
  low = reinterpret_cast<Words>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa));
  high = reinterpret_cast<Words>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa));
#else
  for (int lane = 0; lane < kLanes<uint32_t>; ++lane) {
    const uint64_t product = static_cast<uint64_t>(a[lane]) * b;
    high[lane] = static_cast<uint32_t>(product >> 32), low[lane] = static_cast<uint32_t>(product);
  }
#endif
}

CNNFAST_INLINE Vec<float> square_root(Vec<float> x) {
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  return _mm512_maskz_sqrt_ps(0xffff, x);
#elif defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  return _mm256_sqrt_ps(x);
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}

CNNFAST_INLINE Vec<float> as_float(Words bits) { return reinterpret_cast<Vec<float>>(bits); }
CNNFAST_INLINE Words as_bits(Vec<float> x) { return reinterpret_cast<Words>(x); }
CNNFAST_INLINE Vec<float> float_of(Vec<int32_t> x) { return __builtin_convertvector(x, Vec<float>); }

// x's natural logarithm; x is positive and normal.
CNNFAST_INLINE Vec<float> logarithm(Vec<float> x) {
  const Words shifted = as_bits(x) - kRootHalfBits;
  const Vec<float> exponent = float_of(reinterpret_cast<Vec<int32_t>>(shifted) >> 23);
  return exponent * kLog2 + mantissa_log(as_float((shifted & kMantissaBits) + kRootHalfBits));
}

// Two normals from two words.
CNNFAST_INLINE void box_muller(Words a, Words b, Vec<float>& first, Vec<float>& second) {
  const Vec<float> uniform = (float_of(reinterpret_cast<Vec<int32_t>>(a >> 8)) + 1.0f) * kUniformStep;
  const Words radius = as_bits(square_root(-2.0f * logarithm(uniform))) ^ (b & kNegated);
  const Vec<float> angle = float_of(reinterpret_cast<Vec<int32_t>>(b << 2)) * kEighthStep, s = angle * angle;
  const Vec<float> sine = angle * sine_ratio(s), cosine = cosine_of(s);
  const Vec<int32_t> swapped = reinterpret_cast<Vec<int32_t>>(b & kSwapped) != 0;
  first = as_float(radius) * (swapped ? sine : cosine);
  second = as_float(radius) * (swapped ? cosine : sine);
}

// The numbers of one stream, of one plane: `words` are the second to fourth words of its counters.
class NormalPlane {
 public:
  NormalPlane(uint64_t key, uint32_t channel, uint32_t image, uint32_t stream)
      : key_{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}, words_{channel, image, stream} {}

  // Those of block `block`'s kNoiseBlock elements.
  CNNFAST_INLINE void fill(int64_t block, float* normals) const {
    constexpr int kLanesHere = kLanes<uint32_t>, kChains = kLanesHere < kNoiseStride ? 2 : 1;
    Words lane;
#pragma GCC unroll 16
    for (int i = 0; i < kLanesHere; ++i) lane[i] = static_cast<uint32_t>(i);
    // Each chain waits for its own multiplications: two keep the multiplier busy.
    for (int64_t first = 0; first < kNoiseStride; first += kChains * kLanesHere) {
      Words w[kChains][4];
      unroll<kChains>([&](auto chain) CNNFAST_INLINE_LAMBDA {
        const int64_t counter = block * kNoiseStride + first + chain.value * kLanesHere;
        w[chain.value][0] = lane + static_cast<uint32_t>(counter);
        for (int i = 0; i < 3; ++i) w[chain.value][i + 1] = broadcast(words_[i]);
      });
      uint32_t key[2] = {key_[0], key_[1]};
#pragma GCC unroll 10
      for (int round = 0; round < kPhiloxRounds; ++round) {
        unroll<kChains>([&](auto chain) CNNFAST_INLINE_LAMBDA { philox_round(w[chain.value], key); });
        key[0] += kWeylA, key[1] += kWeylB;
      }
      unroll<kChains>([&](auto chain) CNNFAST_INLINE_LAMBDA {
        const Words(&from)[4] = w[chain.value];
        Vec<float> normal[4];
        box_muller(from[0], from[1], normal[0], normal[1]);
        box_muller(from[2], from[3], normal[2], normal[3]);
#pragma GCC unroll 4
        for (int word = 0; word < 4; ++word)
          store_vec(normals + word * kNoiseStride + first + chain.value * kLanesHere, normal[word]);
      });
    }
  }

 private:
  CNNFAST_INLINE static void philox_round(Words (&w)[4], const uint32_t (&key)[2]) {
    Words high0, low0, high1, low1;
    multiply_wide(w[0], kMultiplierA, high0, low0);
    multiply_wide(w[2], kMultiplierB, high1, low1);
    w[0] = high1 ^ w[1] ^ key[0], w[1] = low1, w[2] = high0 ^ w[3] ^ key[1], w[3] = low0;
  }

  uint32_t key_[2], words_[3];
};

}  // namespace cnnfast::CNNFAST_ISA
