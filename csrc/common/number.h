// Storage types. float16 and bfloat16 are storage only: kernels convert to float, compute, convert back.
//
// `Compute<T>` is the type sums are kept in: float for float16, bfloat16 and float; double for double.
// Static throughout, for the reason given in shape.h.
#pragma once

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

#include <cstdint>
#include <cstring>

#include "common/shape.h"

namespace cnnfast {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// X(T) for each storage type.
#define CNNFAST_FOR_EACH_TYPE(X) X(float) X(double) X(bfloat16) X(float16)

template <class T>
struct ComputeOf {
  using type = T;
};
template <>
struct ComputeOf<bfloat16> {
  using type = float;
};
template <>
struct ComputeOf<float16> {
  using type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

CNNFAST_BOTH static inline uint32_t float_bits(float x) {
  uint32_t b;
  std::memcpy(&b, &x, 4);
  return b;
}
CNNFAST_BOTH static inline float bits_float(uint32_t b) {
  float x;
  std::memcpy(&x, &b, 4);
  return x;
}

CNNFAST_BOTH static inline float load(const float* p) { return *p; }
CNNFAST_BOTH static inline double load(const double* p) { return *p; }
CNNFAST_BOTH static inline float load(const bfloat16* p) { return bits_float(static_cast<uint32_t>(p->bits) << 16); }

// IEEE 754 binary16 to binary32. With 2^-14 added to a subnormal's exponent field it is a normal float of the same
// spacing, from which 2^-14 is taken again: exact, and no float on the way is a subnormal, which
// torch.set_flush_denormal(True) would make zero.
CNNFAST_BOTH static inline float load(const float16* p) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(p->bits));
#else
  const uint32_t h = p->bits, sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  const uint32_t subnormal = float_bits(bits_float(0x38800000u | magnitude << 13) - 0x1p-14f);
  const uint32_t normal = (magnitude << 13) + 0x38000000u, special = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  return bits_float(sign | (magnitude < 0x0400u ? subnormal : magnitude >= 0x7c00u ? special : normal));
#endif
}

CNNFAST_BOTH static inline void store(float* p, float x) { *p = x; }
CNNFAST_BOTH static inline void store(double* p, double x) { *p = x; }

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
CNNFAST_BOTH static inline void store(bfloat16* p, float x) {
  const uint32_t b = float_bits(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) {
    p->bits = static_cast<uint16_t>((b >> 16) | 0x40u);
  } else {
    p->bits = static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
  }
}

// Round to nearest, ties to even. A subnormal result is rounded by adding 0.5, whose last mantissa bit then is worth
// 2^-24, the spacing of binary16 subnormals.
CNNFAST_BOTH static inline void store(float16* p, float x) {
#ifdef __CUDA_ARCH__
  p->bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t b = float_bits(x), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u) {
    h = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // rounds to infinity from 65520 on
    h = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14
    h = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  p->bits = static_cast<uint16_t>(sign | h);
#endif
}

}  // namespace cnnfast
