// Blocks of pixels between planes and channels_last.
#pragma once

#include "cpu/channels_last.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

// to[channel][pixel] = from[pixel][channel], channel after channel rather than pixel after pixel: planes are often a
// multiple of a page apart, so that only few of their lines fit the cache at a time. At least 8 pixels, channels by 4.
static void pixels_to_planes(const float* from, int64_t from_stride, int64_t pixels, int64_t channels, float* to,
                             int64_t to_stride) {
  for (int64_t k = 0; k < channels; k += 4) {
    for (int64_t q = 0; q < pixels; q += 8) {
      q = min(q, pixels - 8);
      transpose_8x4(from + q * from_stride + k, from_stride, to + k * to_stride + q, to_stride);
    }
  }
}

static void from_planes(const float* from, int64_t plane, int64_t channels, int64_t pixels, float* to) {
  transpose(from, plane, channels, pixels, to, channels);
}

static void to_planes(const float* from, int64_t channels, int64_t pixels, float* to, int64_t plane,
                      const Epilogue<float>& epilogue) {
  const Area area{channels, plane, pixels, 1};
  prefetch_residual(epilogue, area);
  const int64_t fours = pixels >= 8 ? channels / 4 * 4 : 0;
  pixels_to_planes(from, channels, pixels, fours, to, plane);
  if (fours < channels) transpose(from + fours, channels, pixels, channels - fours, to + fours * plane, plane);
  finish(epilogue, to, to, area);
}

constexpr ChannelsLastKernels channels_last_kernels() { return {from_planes, to_planes}; }

}  // namespace cnnfast::CNNFAST_ISA
