// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC 2011): four random words
// from a counter and a key alone, so that an element's number depends on nothing but its place.
#pragma once

#include "common/shape.h"

namespace cnnfast {

// What words are multiplied by, and what is added to the key, from round to round.
static constexpr uint32_t kMultiplierA = 0xD2511F53u, kMultiplierB = 0xCD9E8D57u;
static constexpr uint32_t kWeylA = 0x9E3779B9u, kWeylB = 0xBB67AE85u;
static constexpr int kPhiloxRounds = 10;

struct PhiloxWords {
  uint32_t word[4];
};

// One counter's words, where they are not made a register at a time (cpu/kernels/normal.h).
CNNFAST_BOTH static inline PhiloxWords philox(PhiloxWords counter, uint64_t key) {
  uint32_t(&w)[4] = counter.word;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t first = static_cast<uint64_t>(w[0]) * kMultiplierA;
    const uint64_t second = static_cast<uint64_t>(w[2]) * kMultiplierB;
    w[0] = static_cast<uint32_t>(second >> 32) ^ w[1] ^ key0, w[1] = static_cast<uint32_t>(second);
    w[2] = static_cast<uint32_t>(first >> 32) ^ w[3] ^ key1, w[3] = static_cast<uint32_t>(first);
    key0 += kWeylA, key1 += kWeylB;
  }
  return counter;
}

// How a plane's elements share the counters: one counter's words go to elements kNoiseStride apart, so that a register
// of words is one of neighbours, whatever its width. A block of kNoiseBlock elements takes kNoiseStride counters.
static constexpr int64_t kNoiseStride = 16, kNoiseBlock = 64;

// The two random words of Box and Muller's transform, as what it takes: a uniform number in (0, 1] of 24 bits, so that
// no normal is beyond 5.77; and an angle of at most an eighth of a turn to either side, whose sine and cosine are
// swapped and negated by two bits of their own.
static constexpr float kUniformStep = 0x1p-24f, kEighthStep = 0x1p-32f * 1.5707963267948966f;
static constexpr uint32_t kNegated = 0x80000000u, kSwapped = 0x40000000u;

// The series of Box and Muller's functions, of a number or a register of them; each ends where its next term is below a
// float's last bit. Sine over its argument and cosine, of s the argument's square, on [-pi/4, pi/4]:
template <class V>
CNNFAST_INLINE V sine_ratio(V s) {
  return 1.0f + s * (-1.0f / 6 + s * (1.0f / 120 + s * (-1.0f / 5040 + s * (1.0f / 362880))));
}
template <class V>
CNNFAST_INLINE V cosine_of(V s) {
  return 1.0f + s * (-0.5f + s * (1.0f / 24 + s * (-1.0f / 720 + s * (1.0f / 40320))));
}
// log(m) of m in [sqrt(1/2), sqrt(2)], as log((1 + t) / (1 - t)) of |t| <= 0.172.
template <class V>
CNNFAST_INLINE V mantissa_log(V m) {
  const V t = (m - 1.0f) / (m + 1.0f), s = t * t;
  return (t + t) * (1.0f + s * (1.0f / 3 + s * (1.0f / 5 + s * (1.0f / 7 + s * (1.0f / 9)))));
}
// A positive float's bits less these: above bit 23 its exponent, below what is left of it with these added again.
static constexpr uint32_t kRootHalfBits = 0x3f3504f3u, kMantissaBits = 0x007fffffu;
static constexpr float kLog2 = 0.69314718055994531f;

}  // namespace cnnfast
