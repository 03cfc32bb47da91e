// Images' pixels as floats: rows of any storage type and stride in, and out again.
#pragma once

#include "common/augment.h"
#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Calls f(T{}) with the type of the pixels.
template <class F>
CNNFAST_INLINE void with_pixel_type(AugmentType type, const F& f) {
  switch (type) {
    case AugmentType::uint8:
      return f(uint8_t{});
    case AugmentType::float64:
      return f(double{});
    case AugmentType::bfloat16:
      return f(bfloat16{});
    case AugmentType::float16:
      return f(float16{});
    default:
      return f(float{});
  }
}

template <class T>
CNNFAST_INLINE float pixel(const T* p) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    return *p;
  } else {
    return static_cast<float>(load(p));
  }
}

// The nearest byte that there is; 0 for NaN. Values are whole numbers already.
template <class T>
CNNFAST_INLINE void set_pixel(T* p, float x) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    x = x > 0 ? x : 0;
    *p = static_cast<uint8_t>(static_cast<int32_t>(x < 255 ? x : 255));
  } else {
    store(p, static_cast<Compute<T>>(x));
  }
}

// `count` pixels of channel c of image n, from (h, w) on to the right, or to the left with a `step` of -1.
static inline void load_pixels(const View<const void>& view, AugmentType type, int64_t n, int64_t c, int64_t h,
                               int64_t w, int64_t step, int64_t count, float* to) {
  const Strides& s = view.stride;
  with_pixel_type(type, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(view.data) + n * s.n + c * s.c + h * s.h + w * s.w;
    const int64_t stride = s.w * step;
    if (stride == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = pixel(from + i);
    } else if (stride == -1) {
      for (int64_t i = 0; i < count; ++i) to[i] = pixel(from - i);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = pixel(from + i * stride);
    }
  });
}

// Row h.
static inline void store_pixels(const View<void>& view, AugmentType type, int64_t n, int64_t c, int64_t h,
                                int64_t count, const float* from) {
  const Strides& s = view.stride;
  with_pixel_type(type, [&](auto zero) {
    using T = decltype(zero);
    T* to = static_cast<T*>(view.data) + n * s.n + c * s.c + h * s.h;
    if (s.w == 1) {
      for (int64_t i = 0; i < count; ++i) set_pixel(to + i, from[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) set_pixel(to + i * s.w, from[i]);
    }
  });
}

}  // namespace cnnfast::CNNFAST_ISA
