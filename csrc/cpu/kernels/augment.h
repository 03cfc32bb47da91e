// One image through one pass: a band of rows is sampled, goes through the point steps while it is in the nearest cache,
// and is stored.
#pragma once

#include "cpu/kernels/normal.h"
#include "cpu/kernels/sample.h"

namespace cnnfast::CNNFAST_ISA {

// Rows [begin, end) of the output, of the channels from `channel` on: channel i's elements from band + i * stride on.
struct Band {
  float* data;
  int64_t stride, channels, channel, begin, end, count;

  CNNFAST_INLINE float* of(int64_t i) const { return data + i * stride; }
};

// x = f(x) for all elements of channel i; whole registers, beyond the last element.
template <class F>
CNNFAST_INLINE void for_each_register(const Band& band, int64_t i, const F& f) {
  float* x = band.of(i);
  for (int64_t k = 0; k < band.count; k += kLanes<float>) store_vec(x + k, f(load_vec(x + k)));
}

// As torch's clamp: NaN stays.
CNNFAST_INLINE Vec<float> clamped(Vec<float> x, float low, float high) {
  return min_or_second(broadcast(high), max_or_second(broadcast(low), x));
}

CNNFAST_INLINE Vec<float> without_fraction(Vec<float> x) {
  // What is too large for an integer has no fraction.
  const Vec<float> whole = __builtin_convertvector(truncated(x), Vec<float>);
  const Vec<float> limit = broadcast(0x1p23f);
  return x < limit && x > -limit ? whole : x;
}

CNNFAST_INLINE Vec<float> gray_of(const float* red, const float* green, const float* blue, bool integers) {
  const Vec<float> gray = load_vec(red) * kGrayRed + load_vec(green) * kGrayGreen + load_vec(blue) * kGrayBlue;
  return integers ? without_fraction(gray) : gray;
}

// x * factor + (1 - factor) * other, clamped to [0, bound].
CNNFAST_INLINE Vec<float> blend(Vec<float> x, Vec<float> other, float factor, float bound) {
  return clamped(x * factor + other * (1 - factor), 0, bound);
}

static inline void add_noise(const AugmentPass& pass, const Band& band, int64_t n, int64_t i, const PointStep& step) {
  const float* constants = pass.constants + step.constant;
  const float mean = constants[0], sigma = constants[1], low = constants[2], high = constants[3];
  const NormalPlane plane(static_cast<uint64_t>(*pass.key), static_cast<uint32_t>(band.channel + i),
                          static_cast<uint32_t>(n), static_cast<uint32_t>(step.column));
  const int64_t begin = band.begin * pass.Q, end = begin + band.count;
  float* x = band.of(i) - begin;
  for (int64_t block = begin / kNoiseBlock; block * kNoiseBlock < end; ++block) {
    float noise[kNoiseBlock];
    plane.fill(block, noise);
    for (int k = 0; k < kNoiseBlock; k += kLanes<float>) {
      const Vec<float> scaled = mean + sigma * load_vec(noise + k);
      store_vec(noise + k, step.integers ? without_fraction(scaled) : scaled);
    }
    // A band begins and ends where its rows do, a block where it likes.
    const int64_t at = block * kNoiseBlock, from = max(at, begin), to = min(at + kNoiseBlock, end);
    int64_t k = from;
    for (; k + kLanes<float> <= to; k += kLanes<float>)
      store_vec(x + k, clamped(load_vec(x + k) + load_vec(noise + (k - at)), low, high));
    for (; k < to; ++k) x[k] = clamped(broadcast(x[k] + noise[k - at]), low, high)[0];
  }
}

// Columns of row p whose pixels lie inside of an image of H x W, as `map` sees them: half a pixel beyond its centres.
static inline Range columns_inside(const AffineMap& map, int64_t H, int64_t W, int64_t p, int64_t Q) {
  const double y = static_cast<double>(p);
  double begin = 0, end = static_cast<double>(Q);
  // NaN, of parameters that are none, stays, and leaves nothing.
  const auto keep_from = [&](double x) { begin = begin < x || x != x ? x : begin; };
  const auto keep_to = [&](double x) { end = end > x || x != x ? x : end; };
  const auto keep = [&](double slope, double at_zero, int64_t size) {
    const double low = -0.5 - at_zero, high = static_cast<double>(size) - 0.5 - at_zero;  // low <= slope * x < high
    if (slope == 0) {
      if (!(low <= 0 && 0 < high)) end = 0;
    } else if (slope > 0) {
      keep_from(__builtin_ceil(low / slope)), keep_to(__builtin_ceil(high / slope));
    } else {
      keep_from(__builtin_floor(high / slope) + 1), keep_to(__builtin_floor(low / slope) + 1);
    }
  };
  keep(map.xx, map.xy * y + map.x0, W);
  keep(map.yx, map.yy * y + map.y0, H);
  if (!(begin < end)) return {0, 0};
  return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
}

static inline void fill_outside(const AugmentPass& pass, const Band& band, const ImageMaps& image,
                                const PointStep& step) {
  const GeometryStep& geometry = pass.geometry[step.column];
  const AffineMap& map = image.maps[step.column];
  for (int64_t p = band.begin; p < band.end; ++p) {
    const Range inside = columns_inside(map, geometry.H, geometry.W, p, pass.Q);
    if (inside.begin == 0 && inside.end == pass.Q) continue;
    for (int64_t i = 0; i < band.channels; ++i) {
      const float value = pass.constants[step.constant + band.channel + i];
      float* row = band.of(i) + (p - band.begin) * pass.Q;
      for (int64_t q = 0; q < inside.begin; ++q) row[q] = value;
      for (int64_t q = inside.end; q < pass.Q; ++q) row[q] = value;
    }
  }
}

static inline void take_step(const AugmentPass& pass, const Band& band, const ImageMaps& image, int64_t n,
                             const PointStep& step) {
  const float* constants = pass.constants + step.constant;
  const auto factor = [&] { return pass.parameters[n * pass.columns + step.column]; };
  const auto each_channel = [&](const auto& f) {
    for (int64_t i = 0; i < band.channels; ++i) for_each_register(band, i, f);
  };
  switch (step.kind) {
    case PointKind::linear:
      for (int64_t i = 0; i < band.channels; ++i) {
        const int64_t c = band.channel + i;
        const float scale = constants[2 * c], shift = constants[2 * c + 1];
        for_each_register(band, i, [&](Vec<float> x) CNNFAST_INLINE_LAMBDA { return x * scale + shift; });
      }
      return;
    case PointKind::brightness:
    case PointKind::contrast: {
      const Vec<float> other = broadcast(step.kind == PointKind::contrast ? pass.means[n] : 0.0f);
      const float f = factor(), bound = constants[0];
      return each_channel([&](Vec<float> x) CNNFAST_INLINE_LAMBDA { return blend(x, other, f, bound); });
    }
    case PointKind::saturation:
    case PointKind::gray: {
      const bool all = step.kind == PointKind::gray;
      const float f = all ? 0 : factor(), bound = all ? 0 : constants[0];
      for (int64_t k = 0; k < band.count; k += kLanes<float>) {
        const Vec<float> gray = gray_of(band.of(0) + k, band.of(1) + k, band.of(2) + k, step.integers);
        for (int64_t i = 0; i < band.channels; ++i) {
          float* x = band.of(i) + k;
          store_vec(x, all ? gray : blend(load_vec(x), gray, f, bound));
        }
      }
      return;
    }
    case PointKind::noise:
      for (int64_t i = 0; i < band.channels; ++i) add_noise(pass, band, n, i, step);
      return;
    case PointKind::round:
      return each_channel([](Vec<float> x) CNNFAST_INLINE_LAMBDA { return rounded(x); });
    case PointKind::truncate:
      return each_channel([](Vec<float> x) CNNFAST_INLINE_LAMBDA { return without_fraction(x); });
    default:
      return fill_outside(pass, band, image, step);
  }
}

static inline void augment_image(const AugmentPass& pass, int64_t n, float* scratch) {
  const AugmentTiles tiles(pass);
  float *planes = scratch, *data = scratch + tiles.channels * tiles.plane;
  ImageMaps image;
  find_maps(pass, n, image);
  const bool copied = moves_whole_pixels(image.maps[0]);
  for (int64_t c = 0; c < pass.C; c += tiles.channels) {
    if (!copied) load_planes(pass, tiles, n, c, planes);
    for (int64_t begin = 0; begin < pass.P; begin += tiles.rows) {
      const int64_t end = min(begin + tiles.rows, pass.P);
      const Band band{data, tiles.band, tiles.channels, c, begin, end, (end - begin) * pass.Q};
      for (int64_t p = begin; p < end; ++p) {
        float* row = data + (p - begin) * pass.Q;
        if (copied) {
          for (int64_t i = 0; i < tiles.channels; ++i) copy_row(pass, image.maps[0], n, c + i, p, row + i * tiles.band);
        } else if (pass.nearest) {
          sample_row<true>(pass, tiles, image, planes, p, row);
        } else {
          sample_row<false>(pass, tiles, image, planes, p, row);
        }
      }
      for (int64_t i = 0; i < pass.point_count; ++i) take_step(pass, band, image, n, pass.points[i]);
      for (int64_t i = 0; i < min(tiles.channels, pass.output_channels - c); ++i)
        for (int64_t p = begin; p < end; ++p)
          store_pixels(pass.output, pass.output_type, n, c + i, p, pass.Q, band.of(i) + (p - begin) * pass.Q);
    }
  }
}

static inline void gray_mean(const AugmentPass& pass, int64_t n, float* means, float* scratch) {
  const AugmentTiles tiles(pass);
  double sum = 0;
  for (int64_t h = 0; h < pass.H; ++h) {
    for (int64_t c = 0; c < pass.C; ++c)
      load_pixels(pass.input, pass.input_type, n, c, h, 0, 1, pass.W, scratch + c * tiles.band);
    Vec<float> sums{};
    int64_t w = 0;
    const auto gray = [&](int64_t at) {
      const float* x = scratch + at;
      return pass.C == 1 ? load_vec(x)
                         : gray_of(x, x + tiles.band, x + 2 * tiles.band, pass.input_type == AugmentType::uint8);
    };
    for (; w + kLanes<float> <= pass.W; w += kLanes<float>) sums += gray(w);
    if (w < pass.W) sums += first_lanes(gray(w), pass.W - w);
    sum += lane_sum(sums);
  }
  means[n] = static_cast<float>(sum / static_cast<double>(pass.H * pass.W));
}

constexpr AugmentKernels augment_kernels() { return {augment_image, gray_mean}; }

}  // namespace cnnfast::CNNFAST_ISA
