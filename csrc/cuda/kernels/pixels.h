// Images' pixels as floats, and normal noise of an element.
#pragma once

#include <cmath>

#include "common/augment.h"
#include "cuda/kernels/launch.h"

namespace cnnfast {

// The type is every thread's: a branch that nobody is alone in.
CNNFAST_DEVICE float load_pixel(const View<const void>& view, AugmentType type, int64_t n, int64_t c, int64_t h,
                                int64_t w) {
  const int64_t at = n * view.stride.n + c * view.stride.c + h * view.stride.h + w * view.stride.w;
  switch (type) {
    case AugmentType::uint8:
      return static_cast<const uint8_t*>(view.data)[at];
    case AugmentType::float64:
      return static_cast<float>(static_cast<const double*>(view.data)[at]);
    case AugmentType::bfloat16:
      return load(static_cast<const bfloat16*>(view.data) + at);
    case AugmentType::float16:
      return load(static_cast<const float16*>(view.data) + at);
    default:
      return static_cast<const float*>(view.data)[at];
  }
}

// A byte is the nearest that there is, 0 for NaN; values are whole numbers already.
CNNFAST_DEVICE void store_pixel(const View<void>& view, AugmentType type, int64_t n, int64_t c, int64_t h, int64_t w,
                                float x) {
  const int64_t at = n * view.stride.n + c * view.stride.c + h * view.stride.h + w * view.stride.w;
  switch (type) {
    case AugmentType::uint8:
      x = x > 0 ? x : 0;
      static_cast<uint8_t*>(view.data)[at] = static_cast<uint8_t>(x < 255 ? x : 255);
      return;
    case AugmentType::float64:
      static_cast<double*>(view.data)[at] = x;
      return;
    case AugmentType::bfloat16:
      store(static_cast<bfloat16*>(view.data) + at, x);
      return;
    case AugmentType::float16:
      store(static_cast<float16*>(view.data) + at, x);
      return;
    default:
      static_cast<float*>(view.data)[at] = x;
  }
}

// The number of cpu/kernels/normal.h for element `element` of its plane.
CNNFAST_DEVICE float normal_of(uint64_t key, int64_t element, uint32_t channel, uint32_t image, uint32_t stream) {
  const int64_t block = element / kNoiseBlock, place = element % kNoiseBlock;
  const auto counter = static_cast<uint32_t>(block * kNoiseStride + place % kNoiseStride);
  const PhiloxWords words = philox({{counter, channel, image, stream}}, key);
  const bool later = place >= 2 * kNoiseStride, second = place / kNoiseStride % 2 != 0;
  const uint32_t a = later ? words.word[2] : words.word[0], b = later ? words.word[3] : words.word[1];
  const float uniform = (static_cast<float>(a >> 8) + 1.0f) * kUniformStep;
  const uint32_t shifted = float_bits(uniform) - kRootHalfBits;
  const auto exponent = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const float log = exponent * kLog2 + mantissa_log(bits_float((shifted & kMantissaBits) + kRootHalfBits));
  const float radius = bits_float(float_bits(sqrtf(-2.0f * log)) ^ (b & kNegated));
  const float angle = static_cast<float>(static_cast<int32_t>(b << 2)) * kEighthStep, s = angle * angle;
  return radius * (((b & kSwapped) != 0) != second ? angle * sine_ratio(s) : cosine_of(s));
}

}  // namespace cnnfast
