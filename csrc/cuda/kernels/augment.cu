// Augmentation, a pass a launch. A block has pixels of one image, whose maps it finds first; a thread samples a pixel
// in every channel that the steps mix, takes the point steps in registers, and stores it.
#include "cuda/augment.h"
#include "cuda/kernels/block_sum.h"
#include "cuda/kernels/pixels.h"

namespace cnnfast {
namespace {

// Pixels of a block: enough to repay finding the maps.
constexpr int64_t kStrip = 4 * kThreads;

CNNFAST_DEVICE float clamped(float x, float low, float high) {
  x = low > x ? low : x;
  return high < x ? high : x;
}

// What is too large for an integer has no fraction.
CNNFAST_DEVICE float without_fraction(float x) {
  const float limit = 0x1p23f;
  return x < limit && x > -limit ? static_cast<float>(static_cast<int32_t>(x)) : x;
}

// Ties to even.
CNNFAST_DEVICE float rounded(float x) { return rintf(x); }

CNNFAST_DEVICE float gray_of(float red, float green, float blue, bool integers) {
  const float gray = red * kGrayRed + green * kGrayGreen + blue * kGrayBlue;
  return integers ? without_fraction(gray) : gray;
}

// The source's pixel, or what lies around it.
CNNFAST_DEVICE float source(const AugmentPass& pass, int64_t n, int64_t c, int h, int w) {
  const bool inside = h >= 0 && h < pass.H && w >= 0 && w < pass.W;
  return inside ? load_pixel(pass.input, pass.input_type, n, c, h, w) : pass.constants[pass.fill + c];
}

template <int kChannels>
CNNFAST_DEVICE void sample(const AugmentPass& pass, const ImageMaps& image, int64_t n, int64_t channel, int64_t p,
                           int64_t q, float (&x)[kChannels]) {
  if (pass.geometry_count == 0) {
    for (int i = 0; i < kChannels; ++i) x[i] = load_pixel(pass.input, pass.input_type, n, channel + i, p, q);
    return;
  }
  const AffineMap& map = image.maps[0];
  const auto at = [&](double along, double across, double start, float low, float high) {
    const float from = static_cast<float>(across * static_cast<double>(p) + start);
    const float to = from + static_cast<float>(q) * static_cast<float>(along);
    // NaN goes to the lower bound.
    const float above = to > low ? to : low;
    return above < high ? above : high;
  };
  const float from_x = at(map.xx, map.xy, map.x0, image.low_x, image.high_x);
  const float from_y = at(map.yx, map.yy, map.y0, image.low_y, image.high_y);
  if (pass.nearest) {
    const int h = static_cast<int>(floorf(from_y + kNearestShift));
    const int w = static_cast<int>(floorf(from_x + kNearestShift));
    for (int i = 0; i < kChannels; ++i) x[i] = source(pass, n, channel + i, h, w);
    return;
  }
  const float left = floorf(from_x), top = floorf(from_y);
  const float right_share = from_x - left, bottom_share = from_y - top;
  const int w = static_cast<int>(left), h = static_cast<int>(top);
  for (int i = 0; i < kChannels; ++i) {
    const int64_t c = channel + i;
    const float a = source(pass, n, c, h, w), b = source(pass, n, c, h, w + 1);
    const float d = source(pass, n, c, h + 1, w), e = source(pass, n, c, h + 1, w + 1);
    const float upper = a + right_share * (b - a), lower = d + right_share * (e - d);
    x[i] = upper + bottom_share * (lower - upper);
  }
}

// Whether the output's pixel lies inside of what geometric step `index` is given.
CNNFAST_DEVICE bool is_inside(const AugmentPass& pass, const ImageMaps& image, int64_t index, int64_t p, int64_t q) {
  const AffineMap& map = image.maps[index];
  const auto x = static_cast<double>(q), y = static_cast<double>(p);
  const double from_x = map.xx * x + (map.xy * y + map.x0), from_y = map.yx * x + (map.yy * y + map.y0);
  return from_x >= -0.5 && from_x < static_cast<double>(pass.geometry[index].W) - 0.5 && from_y >= -0.5 &&
         from_y < static_cast<double>(pass.geometry[index].H) - 0.5;
}

template <int kChannels>
CNNFAST_DEVICE void take_step(const AugmentPass& pass, const ImageMaps& image, const PointStep& step, int64_t n,
                              int64_t channel, int64_t p, int64_t q, float (&x)[kChannels]) {
  const float* constants = pass.constants + step.constant;
  const auto factor = [&] { return pass.parameters[n * pass.columns + step.column]; };
  const auto blend = [&](float other) {
    const float f = factor(), bound = constants[0];
    for (int i = 0; i < kChannels; ++i) x[i] = clamped(x[i] * f + other * (1 - f), 0, bound);
  };
  switch (step.kind) {
    case PointKind::linear:
      for (int i = 0; i < kChannels; ++i) x[i] = x[i] * constants[2 * (channel + i)] + constants[2 * (channel + i) + 1];
      return;
    case PointKind::brightness:
      return blend(0);
    case PointKind::contrast:
      return blend(pass.means[n]);
    case PointKind::saturation:
    case PointKind::gray:
      if constexpr (kChannels == 3) {
        const float gray = gray_of(x[0], x[1], x[2], step.integers);
        if (step.kind == PointKind::saturation) return blend(gray);
        for (int i = 0; i < kChannels; ++i) x[i] = gray;
      }
      return;
    case PointKind::noise:
      for (int i = 0; i < kChannels; ++i) {
        const float normal =
            normal_of(static_cast<uint64_t>(*pass.key), p * pass.Q + q, static_cast<uint32_t>(channel + i),
                      static_cast<uint32_t>(n), static_cast<uint32_t>(step.column));
        const float noise = constants[0] + constants[1] * normal;
        x[i] = clamped(x[i] + (step.integers ? without_fraction(noise) : noise), constants[2], constants[3]);
      }
      return;
    case PointKind::round:
      for (int i = 0; i < kChannels; ++i) x[i] = rounded(x[i]);
      return;
    case PointKind::truncate:
      for (int i = 0; i < kChannels; ++i) x[i] = without_fraction(x[i]);
      return;
    default:
      if (!is_inside(pass, image, step.column, p, q))
        for (int i = 0; i < kChannels; ++i) x[i] = constants[channel + i];
  }
}

template <int kChannels>
__global__ void augment_strips(AugmentPass pass, int64_t strips, int64_t blocks) {
  CNNFAST_SHARED(ImageMaps, image, 1);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Divided at = divide(block, strips);
    const int64_t n = at.quotient, begin = at.remainder * kStrip, end = min(begin + kStrip, pass.P * pass.Q);
    if (threadIdx.x == 0) find_maps(pass, n, *image);
    __syncthreads();
    for (int64_t pixel = begin + threadIdx.x; pixel < end; pixel += blockDim.x) {
      const Divided place = divide(pixel, pass.Q);
      const int64_t p = place.quotient, q = place.remainder;
      for (int64_t channel = 0; channel < pass.C; channel += kChannels) {
        float x[kChannels];
        sample(pass, *image, n, channel, p, q, x);
        for (int64_t i = 0; i < pass.point_count; ++i) take_step(pass, *image, pass.points[i], n, channel, p, q, x);
        for (int i = 0; i < kChannels; ++i)
          if (channel + i < pass.output_channels)
            store_pixel(pass.output, pass.output_type, n, channel + i, p, q, x[i]);
      }
    }
    __syncthreads();
  }
}

// A block sums an image: its threads' sums in float, of every 256th pixel, then these in double. Warps' sums of two
// images in turn have places of their own: thread 0 still reads one's when other warps have come to the next's.
__global__ void gray_means(AugmentPass pass, float* means) {
  constexpr int kWarps = kThreads / kWarp;
  CNNFAST_SHARED(double, sums, 2 * kWarps);
  int place = 0;
  for (int64_t n = blockIdx.x; n < pass.N; n += gridDim.x, place = kWarps - place) {
    float sum = 0;
    for (int64_t pixel = threadIdx.x; pixel < pass.H * pass.W; pixel += blockDim.x) {
      const Divided at = divide(pixel, pass.W);
      const auto load = [&](int64_t c) {
        return load_pixel(pass.input, pass.input_type, n, c, at.quotient, at.remainder);
      };
      sum += pass.C == 1 ? load(0) : gray_of(load(0), load(1), load(2), pass.input_type == AugmentType::uint8);
    }
    const double total = block_sum(static_cast<double>(sum), static_cast<double*>(sums) + place);
    if (threadIdx.x == 0) means[n] = static_cast<float>(total / static_cast<double>(pass.H * pass.W));
  }
}

__global__ void maps_of_images(AugmentPass pass, double* maps) {
  CNNFAST_SHARED(ImageMaps, image, 1);  // an array that is indexed, which registers are not
  for (int64_t n = blockIdx.x; n < pass.N; n += gridDim.x) {
    find_maps(pass, n, *image);
    const AffineMap& map = image->maps[0];
    double* to = maps + 6 * n;
    to[0] = map.xx, to[1] = map.xy, to[2] = map.x0, to[3] = map.yx, to[4] = map.yy, to[5] = map.y0;
  }
}

}  // namespace

void augment(Cuda device, const AugmentPass& pass) {
  const int64_t strips = ceil_div(pass.P * pass.Q, kStrip), blocks = pass.N * strips;
  launch_resident("augment", device, pass.C == 3 ? augment_strips<3> : augment_strips<1>, blocks, kThreads, 0, pass,
                  strips, blocks);
}

void augment_gray_mean(Cuda device, const AugmentPass& pass, float* means) {
  launch_resident("augment_gray_mean", device, gray_means, pass.N, kThreads, 0, pass, means);
}

void augment_maps(Cuda device, const AugmentPass& pass, double* maps) {
  launch("augment_maps", device, maps_of_images, pass.N, 1, 0, pass, maps);
}

}  // namespace cnnfast
