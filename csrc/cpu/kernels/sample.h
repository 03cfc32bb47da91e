// Sampling an image through an affine map: planes with a border, from which a row's pixels are gathered.
#pragma once

#include "cpu/augment.h"
#include "cpu/kernels/pixels.h"

namespace cnnfast::CNNFAST_ISA {

// p[index], lane by lane.
CNNFAST_INLINE Vec<float> gather(const float* p, Vec<int32_t> index) {
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  return _mm512_mask_i32gather_ps(Vec<float>{}, 0xffff, reinterpret_cast<__m512i>(index), p, 4);
#elif defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  // The plain gathers warn in gcc 12, here and below.
  const __m256 all = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  return _mm256_mask_i32gather_ps(__m256{}, p, reinterpret_cast<__m256i>(index), all, 4);
#else
  Vec<float> v{};
  for (int lane = 0; lane < kLanes<float>; ++lane) v[lane] = p[index[lane]];
  return v;
#endif
}

// first = p[index], second = p[index + 1]: half as many loads as two gathers have, each of eight bytes.
CNNFAST_INLINE void gather_pairs(const float* p, Vec<int32_t> index, Vec<float>& first, Vec<float>& second) {
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  // gcc 12 warns of the casts to and from halves.
  const auto half = [&](Lanes<int32_t, 8> eight) CNNFAST_INLINE_LAMBDA {
    const __m512d pairs = _mm512_mask_i32gather_pd(__m512d{}, 0xff, reinterpret_cast<__m256i>(eight), p, 4);
    return reinterpret_cast<Vec<float>>(pairs);
  };
  const Vec<float> low = half(__builtin_shufflevector(index, index, 0, 1, 2, 3, 4, 5, 6, 7));
  const Vec<float> high = half(__builtin_shufflevector(index, index, 8, 9, 10, 11, 12, 13, 14, 15));
  first = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  second = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
  // Lanes 0, 1, 4, 5 and 2, 3, 6, 7, which shuffles within halves put into order.
  const __m256i in = _mm256_permute4x64_epi64(reinterpret_cast<__m256i>(index), 0xd8);
  const auto half = [&](__m128i four) CNNFAST_INLINE_LAMBDA {
    const __m256d all = _mm256_castsi256_pd(_mm256_set1_epi32(-1));
    return _mm256_castpd_ps(_mm256_mask_i32gather_pd(__m256d{}, reinterpret_cast<const double*>(p), four, all, 4));
  };
  const __m256 low = half(_mm256_castsi256_si128(in)), high = half(_mm256_extracti128_si256(in, 1));
  first = _mm256_shuffle_ps(low, high, 0x88);
  second = _mm256_shuffle_ps(low, high, 0xdd);
#else
  first = gather(p, index), second = gather(p + 1, index);
#endif
}

CNNFAST_INLINE Vec<int32_t> truncated(Vec<float> x) { return __builtin_convertvector(x, Vec<int32_t>); }

// Ties to even, of numbers below 2^22.
CNNFAST_INLINE Vec<float> rounded(Vec<float> x) {
  const float shift = 0x1.8p23f;
  return (x + shift) - shift;
}

// Planes of the channels from c on, as floats, in a border: a pixel before, two after. What lies around an image is the
// fill, so that interpolation blends with it at the edge.
static inline void load_planes(const AugmentPass& pass, const AugmentTiles& tiles, int64_t n, int64_t c,
                               float* planes) {
  for (int64_t i = 0; i < tiles.channels; ++i) {
    const float around = pass.constants[pass.fill + c + i];
    float* row = planes + i * tiles.plane;
    const auto fill = [&](int64_t count) {
      for (int64_t k = 0; k < count; ++k) row[k] = around;
      row += count;
    };
    fill(tiles.plane_stride);
    for (int64_t h = 0; h < pass.H; ++h) {
      fill(1);
      load_pixels(pass.input, pass.input_type, n, c + i, h, 0, 1, pass.W, row);
      row += pass.W;
      fill(2);
    }
    fill(2 * tiles.plane_stride);
  }
}

// Row p of the output, of all channels: channel i's at output + i * tiles.band. Whole registers, beyond the row's end.
// Coordinates count from the border's first pixel; bounds keep them where the planes are, NaN too.
template <bool kNearest>
void sample_row(const AugmentPass& pass, const AugmentTiles& tiles, const ImageMaps& image, const float* planes,
                int64_t p, float* output) {
  const AffineMap& map = image.maps[0];
  const double y = static_cast<double>(p);
  const float x0 = static_cast<float>(map.xy * y + map.x0), y0 = static_cast<float>(map.yy * y + map.y0);
  const float step_x = static_cast<float>(map.xx), step_y = static_cast<float>(map.yx);
  const Vec<float> low_x = broadcast(image.low_x), high_x = broadcast(image.high_x);
  const Vec<float> low_y = broadcast(image.low_y), high_y = broadcast(image.high_y);
  const int32_t stride = static_cast<int32_t>(tiles.plane_stride);
  Vec<float> column;
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes<float>; ++lane) column[lane] = static_cast<float>(lane);

  for (int64_t q = 0; q < pass.Q; q += kLanes<float>, column += static_cast<float>(kLanes<float>)) {
    const Vec<float> x = min_or_second(max_or_second(x0 + column * step_x, low_x), high_x);
    const Vec<float> y = min_or_second(max_or_second(y0 + column * step_y, low_y), high_y);
    if constexpr (kNearest) {
      const Vec<int32_t> index = truncated(y + (1 + kNearestShift)) * stride + truncated(x + (1 + kNearestShift));
      for (int64_t i = 0; i < tiles.channels; ++i)
        store_vec(output + i * tiles.band + q, gather(planes + i * tiles.plane, index));
    } else {
      const Vec<int32_t> left = truncated(x + 1.0f), top = truncated(y + 1.0f);
      const Vec<float> right_share = x + 1.0f - __builtin_convertvector(left, Vec<float>);
      const Vec<float> bottom_share = y + 1.0f - __builtin_convertvector(top, Vec<float>);
      const Vec<int32_t> index = top * stride + left;
      for (int64_t i = 0; i < tiles.channels; ++i) {
        const float* plane = planes + i * tiles.plane;
        Vec<float> a, b, c, d;
        gather_pairs(plane, index, a, b);
        gather_pairs(plane + stride, index, c, d);
        const Vec<float> upper = a + right_share * (b - a), lower = c + right_share * (d - c);
        store_vec(output + i * tiles.band + q, upper + bottom_share * (lower - upper));
      }
    }
  }
}

// Whether every pixel falls on one, in rows of the source: flips, crops, and no geometric step at all.
static inline bool moves_whole_pixels(const AffineMap& map) {
  const auto is_whole = [](double x) { return x == __builtin_floor(x) && x < 0x1p31 && x > -0x1p31; };
  return (map.xx == 1 || map.xx == -1) && (map.yy == 1 || map.yy == -1) && map.xy == 0 && map.yx == 0 &&
         is_whole(map.x0) && is_whole(map.y0);
}

// Row p of the output's channel c through such a map, from the source itself.
static inline void copy_row(const AugmentPass& pass, const AffineMap& map, int64_t n, int64_t c, int64_t p,
                            float* output) {
  const auto step = static_cast<int64_t>(map.xx), start = static_cast<int64_t>(map.x0);
  const int64_t h = static_cast<int64_t>(map.yy) * p + static_cast<int64_t>(map.y0);
  const int64_t first = step > 0 ? -start : start - pass.W + 1;  // column of the output that shows the source's edge
  int64_t begin = min(max(first, int64_t{0}), pass.Q), end = max(min(first + pass.W, pass.Q), begin);
  if (h < 0 || h >= pass.H) begin = end = 0;
  const auto fill = [&](int64_t from, int64_t to) {
    for (int64_t q = from; q < to; ++q) output[q] = pass.constants[pass.fill + c];
  };
  fill(0, begin);
  load_pixels(pass.input, pass.input_type, n, c, h, start + step * begin, step, end - begin, output + begin);
  fill(end, pass.Q);
}

}  // namespace cnnfast::CNNFAST_ISA
