// One pass of an augmentation as plain data, shared by every device: geometric steps, folded into one affine map an
// image, then point steps on what was sampled. cnnfast/augment/passes.py writes it, and says what folds.
#pragma once

#include "common/philox.h"
#include "common/shape.h"

namespace cnnfast {

// (x, y) -> (xx * x + xy * y + x0, yx * x + yy * y + y0), of indices: pixel centres are whole numbers.
struct AffineMap {
  double xx, xy, x0, yx, yy, y0;
};

// first, then second: the map from the coordinates that `first` takes to those that `second` gives.
CNNFAST_BOTH static inline AffineMap then(const AffineMap& first, const AffineMap& second) {
  return {second.xx * first.xx + second.xy * first.yx,
          second.xx * first.xy + second.xy * first.yy,
          second.xx * first.x0 + second.xy * first.y0 + second.x0,
          second.yx * first.xx + second.yy * first.yx,
          second.yx * first.xy + second.yy * first.yy,
          second.yx * first.x0 + second.yy * first.y0 + second.y0};
}

enum class AugmentType : int64_t { uint8, float32, float64, bfloat16, float16 };

enum class GeometryKind : int64_t { affine, flip, crop, resized_crop, count };

// A step from an image of H x W. Its numbers are an image's own, columns of AugmentPass::parameters; -1 is the neutral
// one. Affine: angle, x and y of the translation, scale, x and y of the shear, as torchvision's affine; constants are
// (factor of the angle, x and y of the centre in indices). Flip: horizontal, vertical, each yes where not zero. Crop:
// top and left in the padded image; constants are (padding at the top, at the left). Resized crop: top, left, height,
// width.
struct GeometryStep {
  static constexpr int kColumns = 6;
  GeometryKind kind;
  int64_t H, W;
  int64_t columns[kColumns];
  int64_t constant;
};

enum class PointKind : int64_t {
  linear,      // x * constants[2 c] + constants[2 c + 1], c the channel
  brightness,  // x * factor, clamped to [0, constants[0]]; the factor is the image's
  contrast,    // towards the image's mean, likewise
  saturation,  // towards the pixel's grey, likewise
  gray,        // every channel becomes the pixel's grey
  noise,       // x + constants[0] + constants[1] * normal, clamped to [constants[2], constants[3]]; of stream `column`
  round,       // to the nearest integer, ties to even
  truncate,    // towards zero
  fill,        // constants[c] outside of what geometric step `column` is given
  count
};

struct PointStep {
  PointKind kind;
  int64_t column;    // of the factor in the parameters, or as said above
  int64_t constant;  // of the first of its constants
  bool integers;     // pixels are whole numbers of 0 to 255: greys and noise are truncated, as torchvision's
};

struct AugmentPass {
  static constexpr int kMostGeometry = 8, kMostPoints = 24;

  int64_t N, C, H, W, P, Q;
  int64_t output_channels;  // C, or 1: the first
  AugmentType input_type, output_type;
  View<const void> input;
  View<void> output;
  bool nearest;  // instead of bilinear
  int64_t fill;  // in constants, one a channel: what lies around the source
  int64_t geometry_count, point_count;
  GeometryStep geometry[kMostGeometry];
  PointStep points[kMostPoints];
  const float* parameters;  // [N, columns]
  int64_t columns;
  const float* constants;
  const float* means;  // [N], for contrast
  const int64_t* key;  // of the noise
};

// The nearest pixel's index is that of the whole number below a coordinate plus this. Coordinates halfway between
// pixels are common (every second one, where a size is doubled) and go up, those that rounding has put a little below,
// too.
static constexpr float kNearestShift = 0.5f + 0x1p-13f;

// Weights of the grey of a colour image, as torchvision has them.
static constexpr float kGrayRed = 0.2989f, kGrayGreen = 0.587f, kGrayBlue = 0.114f;

struct SineCosine {
  double sine, cosine;
};

// Of an angle in degrees; exact at multiples of 90. Quarter turns are taken off, and Taylor's series of what is left,
// at most 45 degrees, end where their terms are below a double's last bit.
CNNFAST_BOTH static inline SineCosine sine_cosine(double degrees) {
  if (degrees == 0) return {0, 1};  // of most steps: their other angles are not asked for
  double turns = degrees / 90 + 0.5;
  turns = turns > 1e9 || turns < -1e9 || turns != turns ? 0 : turns;
  const int64_t whole = static_cast<int64_t>(turns), quarter = whole > turns ? whole - 1 : whole;
  const double a = (degrees - 90 * static_cast<double>(quarter)) * 0.017453292519943295, s = a * a;
  double sine = 1, cosine = 1;
  for (int n = 8; n > 0; --n) {
    sine = 1 - s * (1.0 / (2 * n * (2 * n + 1))) * sine;
    cosine = 1 - s * (1.0 / (2 * n * (2 * n - 1))) * cosine;
  }
  sine *= a;
  switch (quarter & 3) {
    case 0:
      return {sine, cosine};
    case 1:
      return {cosine, -sine};
    case 2:
      return {-sine, -cosine};
    default:
      return {-cosine, sine};
  }
}

// From the coordinates of a step's output, of P x Q, to those of its input.
CNNFAST_BOTH static inline AffineMap map_of(const AugmentPass& pass, const GeometryStep& step, int64_t P, int64_t Q,
                                            const float* parameters) {
  const auto number = [&](int i, double neutral) {
    return step.columns[i] < 0 ? neutral : static_cast<double>(parameters[step.columns[i]]);
  };
  const float* constants = pass.constants + step.constant;
  switch (step.kind) {
    case GeometryKind::flip: {
      const bool horizontal = number(0, 0) != 0, vertical = number(1, 0) != 0;
      return {horizontal ? -1.0 : 1.0,
              0,
              horizontal ? static_cast<double>(step.W - 1) : 0,
              0,
              vertical ? -1.0 : 1.0,
              vertical ? static_cast<double>(step.H - 1) : 0};
    }
    case GeometryKind::crop:
      return {1, 0, number(1, 0) - constants[1], 0, 1, number(0, 0) - constants[0]};
    case GeometryKind::resized_crop: {
      const double x = number(3, 1) / static_cast<double>(Q), y = number(2, 1) / static_cast<double>(P);
      return {x, 0, x / 2 - 0.5 + number(1, 0), 0, y, y / 2 - 0.5 + number(0, 0)};
    }
    default: {  // affine: the inverse of (translate) (centre) (rotate) (scale) (shear y) (shear x) (centre back)
      const double scale = 1 / number(3, 1), x = constants[1], y = constants[2];
      const double degrees = number(0, 0) * constants[0], degrees_y = number(5, 0);
      const SineCosine turn = sine_cosine(degrees);
      const SineCosine less = degrees_y == 0 ? turn : sine_cosine(degrees - degrees_y);
      const SineCosine shear_x = sine_cosine(number(4, 0)), shear_y = sine_cosine(degrees_y);
      const double tangent = shear_x.sine / shear_x.cosine;
      const double a = less.cosine / shear_y.cosine, c = less.sine / shear_y.cosine;
      const double b = -(a * tangent + turn.sine), d = turn.cosine - c * tangent;
      AffineMap map{d * scale, -b * scale, 0, -c * scale, a * scale, 0};
      const double from_x = x + number(1, 0), from_y = y + number(2, 0);
      map.x0 = x - map.xx * from_x - map.xy * from_y;
      map.y0 = y - map.yx * from_x - map.yy * from_y;
      return map;
    }
  }
}

// What is computed once for each image: maps[i] goes from the output to the input of step i, maps[0] to the source.
// `low_*` and `high_*` bound the source's coordinates: beyond its edge one sees what lies around it, or with a resized
// crop the crop's edge.
struct ImageMaps {
  AffineMap maps[AugmentPass::kMostGeometry];
  float low_x, high_x, low_y, high_y;
};

CNNFAST_BOTH static inline void find_maps(const AugmentPass& pass, int64_t n, ImageMaps& image) {
  const float* parameters = pass.parameters + n * pass.columns;
  image.maps[0] = {1, 0, 0, 0, 1, 0};
  for (int64_t i = pass.geometry_count - 1; i >= 0; --i) {
    const bool last = i == pass.geometry_count - 1;
    const GeometryStep& step = pass.geometry[i];
    const int64_t P = last ? pass.P : pass.geometry[i + 1].H, Q = last ? pass.Q : pass.geometry[i + 1].W;
    const AffineMap map = map_of(pass, step, P, Q, parameters);
    image.maps[i] = last ? map : then(image.maps[i + 1], map);
  }
  image.low_x = image.low_y = -1;
  image.high_x = static_cast<float>(pass.W), image.high_y = static_cast<float>(pass.H);
  if (pass.geometry_count > 0 && pass.geometry[0].kind == GeometryKind::resized_crop) {
    // Whatever the parameters say, the bounds stay where there are pixels.
    const auto edges = [&](int64_t start, int64_t size, float& low, float& high) {
      const float most = high, from = parameters[start], to = from + parameters[size] - 1;
      low = from > 0 ? min(from, most) : 0, high = to > 0 ? min(to, most) : 0;
    };
    const int64_t* columns = pass.geometry[0].columns;
    edges(columns[0], columns[2], image.low_y, image.high_y);
    edges(columns[1], columns[3], image.low_x, image.high_x);
  }
}

}  // namespace cnnfast
