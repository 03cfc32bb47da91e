// augment and augment_gray_mean of every device. Lists of numbers become a pass, each index in them checked: a kernel
// reads what they point to.
#pragma once

#include <optional>

#include "checks.h"
#include "common/augment.h"
#include "ops/device.h"

namespace cnnfast {

inline AugmentType augment_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return AugmentType::uint8;
    case ScalarType::Float:
      return AugmentType::float32;
    case ScalarType::Double:
      return AugmentType::float64;
    case ScalarType::BFloat16:
      return AugmentType::bfloat16;
    case ScalarType::Half:
      return AugmentType::float16;
    default:
      fail("augment: images must be uint8, float32, float64, bfloat16 or float16, but got dtype=", dtype);
  }
}

// A pass that does nothing yet, over these images.
inline AugmentPass augment_images(const Tensor& images) {
  CNNFAST_CHECK(images.dim() == 4, "augment: images must be [N, C, H, W], but got images.shape=", show_size(images));
  AugmentPass pass{};
  pass.N = images.size(0), pass.C = images.size(1), pass.H = images.size(2), pass.W = images.size(3);
  CNNFAST_CHECK(pass.N == 0 || (pass.C > 0 && pass.H > 0 && pass.W > 0),
                "augment: images must not be empty but for their number, but got images.shape=", show_size(images));
  const int64_t kMost = 1 << 22;  // of coordinates, which are floats; and of a plane's offsets, 31 bits
  CNNFAST_CHECK(pass.H < kMost && pass.W < kMost && (pass.H + 3) * (pass.W + 3) < int64_t{1} << 31,
                "augment: images must have fewer than 2^31 pixels and sides below 2^22, but got images.shape=",
                show_size(images));
  pass.input_type = augment_type(images.scalar_type());
  const View<const float> view = view_of<const float>(images);
  pass.input = {view.data, view.stride};
  return pass;
}

// The steps, and that what they point to is there.
class AugmentSteps {
 public:
  AugmentSteps(AugmentPass& pass, int64_t constants, bool means, bool key)
      : pass_(pass), constants_(constants), means_(means), key_(key) {}

  void read_geometry(Ints list) {
    constexpr size_t kNumbers = GeometryStep::kColumns + 4;
    pass_.geometry_count = count("geometry", list, kNumbers, AugmentPass::kMostGeometry);
    for (int64_t i = 0; i < pass_.geometry_count; ++i) {
      const Ints numbers = list.subspan(static_cast<size_t>(i) * kNumbers, kNumbers);
      const auto kind = static_cast<GeometryKind>(numbers[0]);
      CNNFAST_CHECK(numbers[0] >= 0 && kind < GeometryKind::count,
                    "augment: a geometric step must be of a known kind, but got kind=", numbers[0]);
      CNNFAST_CHECK(i == 0 || kind != GeometryKind::resized_crop,
                    "augment: a resized crop must be the first geometric step of a pass, but got it as step ", i);
      GeometryStep& step = pass_.geometry[i];
      step = {kind, numbers[1], numbers[2], {}, numbers.back()};
      CNNFAST_CHECK(step.H > 0 && step.W > 0 && (i > 0 || (step.H == pass_.H && step.W == pass_.W)), "augment: step ",
                    i, " must begin with the images' size, but got (", step.H, ", ", step.W, ") for images of (",
                    pass_.H, ", ", pass_.W, ")");
      for (size_t k = 0; k < GeometryStep::kColumns; ++k) {
        step.columns[k] = numbers[3 + k];
        column(step.columns[k], kind == GeometryKind::resized_crop && k < 4 ? 0 : -1);
      }
      constant(step.constant, kind == GeometryKind::affine ? 3 : kind == GeometryKind::crop ? 2 : 0);
    }
  }

  void read_points(Ints list) {
    constexpr size_t kNumbers = 4;
    pass_.point_count = count("points", list, kNumbers, AugmentPass::kMostPoints);
    for (int64_t i = 0; i < pass_.point_count; ++i) {
      const Ints numbers = list.subspan(static_cast<size_t>(i) * kNumbers, kNumbers);
      CNNFAST_CHECK(numbers[0] >= 0 && numbers[0] < static_cast<int64_t>(PointKind::count),
                    "augment: a point step must be of a known kind, but got kind=", numbers[0]);
      pass_.points[i] = {static_cast<PointKind>(numbers[0]), numbers[1], numbers[2], numbers[3] != 0};
      check_point(pass_.points[i]);
    }
  }

  void constant(int64_t first, int64_t needed) const {
    CNNFAST_CHECK(needed == 0 || (first >= 0 && first + needed <= constants_), "augment: constants must have ", needed,
                  " values from ", first, " on, but got ", constants_);
  }

 private:
  void check_point(const PointStep& step) const {
    switch (step.kind) {
      case PointKind::linear:
        return constant(step.constant, 2 * pass_.C);
      case PointKind::contrast:
        CNNFAST_CHECK(means_ || pass_.N == 0, "augment: contrast needs means, but got none");
        [[fallthrough]];
      case PointKind::brightness:
        column(step.column, 0);
        return constant(step.constant, 1);
      case PointKind::saturation:
        colours();
        column(step.column, 0);
        return constant(step.constant, 1);
      case PointKind::gray:
        return colours();
      case PointKind::noise:
        CNNFAST_CHECK(key_, "augment: noise needs a key, but got none");
        return constant(step.constant, 4);
      case PointKind::fill:
        CNNFAST_CHECK(step.column >= 0 && step.column < pass_.geometry_count,
                      "augment: fill must name a geometric step, but got step ", step.column, " of ",
                      pass_.geometry_count);
        return constant(step.constant, pass_.C);
      default:
        return;
    }
  }

  static int64_t count(const char* name, Ints list, size_t numbers, int64_t most) {
    const auto steps = static_cast<int64_t>(list.size() / numbers);
    CNNFAST_CHECK(list.size() % numbers == 0 && steps <= most, "augment: ", name, " must have ", numbers,
                  " numbers for each of at most ", most, " steps, but got ", list.size());
    return steps;
  }
  void column(int64_t index, int64_t least) const {
    CNNFAST_CHECK(index >= least && index < pass_.columns, "augment: parameters must have column ", index, ", but got ",
                  pass_.columns, " columns");
  }
  void colours() const {
    CNNFAST_CHECK(pass_.C == 3 || pass_.N == 0, "augment: grey is of 3 channels, but got C=", pass_.C);
  }

  AugmentPass& pass_;
  const int64_t constants_;
  const bool means_, key_;
};

// `tensor` of a pass: on the images' device, of one dtype, dense.
inline void check_operand(const char* name, const Tensor& tensor, const Tensor& images, ScalarType dtype,
                          int64_t dims) {
  CNNFAST_CHECK(tensor.scalar_type() == dtype && tensor.dim() == dims && tensor.is_contiguous(), "augment: ", name,
                " must be contiguous, ", dims, "D and ", dtype, ", but got ", name, ".dtype=", tensor.scalar_type(),
                ", ", name, ".shape=", show_size(tensor));
  check_device("augment", name, tensor, "images", images);
}

template <class Device>
Tensor augment_op(const Tensor& images, const Tensor& parameters, const Tensor& constants,
                  const std::optional<Tensor>& means, const std::optional<Tensor>& key, const IntList& options,
                  const IntList& geometry, const IntList& points, ScalarType dtype) {
  AugmentPass pass = augment_images(images);
  check_operand("parameters", parameters, images, ScalarType::Float, 2);
  check_operand("constants", constants, images, ScalarType::Float, 1);
  CNNFAST_CHECK(parameters.size(0) == pass.N, "augment: parameters must have a row for each of ", pass.N,
                " images, but got parameters.shape=", show_size(parameters));
  if (means.has_value()) {
    check_operand("means", *means, images, ScalarType::Float, 1);
    CNNFAST_CHECK(means->size(0) == pass.N, "augment: means must have shape [N], but got ", show_size(*means));
    pass.means = data_of<const float>(*means);
  }
  if (key.has_value()) {
    check_operand("key", *key, images, ScalarType::Long, 1);
    CNNFAST_CHECK(key->size(0) == 1, "augment: key must have shape [1], but got ", show_size(*key));
    pass.key = data_of<const int64_t>(*key);
  }
  CNNFAST_CHECK(options.size() == 5, "augment: options must have 5 values, but got options=", show(options));
  pass.P = options[0], pass.Q = options[1], pass.output_channels = options[2];
  pass.nearest = options[3] != 0, pass.fill = options[4];
  pass.parameters = data_of<const float>(parameters), pass.columns = parameters.size(1);
  pass.constants = data_of<const float>(constants);
  AugmentSteps steps(pass, constants.size(0), means.has_value(), key.has_value());
  steps.read_geometry(geometry);
  steps.read_points(points);
  if (pass.geometry_count > 0) steps.constant(pass.fill, pass.C);
  CNNFAST_CHECK(pass.geometry_count > 0 ? pass.P > 0 && pass.Q > 0 : pass.P == pass.H && pass.Q == pass.W,
                "augment: the output's size must be positive, and the images' without a geometric step, but got (",
                pass.P, ", ", pass.Q, ")");
  CNNFAST_CHECK(pass.output_channels == pass.C || (pass.output_channels == 1 && pass.C == 3),
                "augment: output channels must be the images', or 1 of 3, but got ", pass.output_channels, " of ",
                pass.C);
  pass.output_type = augment_type(dtype);

  const Guard<Device> guard(images);
  const Tensor output =
      empty(images, {pass.N, pass.output_channels, pass.P, pass.Q}, 4, suggests_channels_last(images), dtype);
  const View<float> view = view_of<float>(output);
  pass.output = {view.data, view.stride};
  if (pass.N > 0) augment(guard.device(), pass);
  return output;
}

template <class Device>
Tensor augment_gray_mean_op(const Tensor& images) {
  AugmentPass pass = augment_images(images);
  pass.P = pass.H, pass.Q = pass.W;
  CNNFAST_CHECK(pass.N == 0 || pass.C == 1 || pass.C == 3,
                "augment: contrast is of 1 or 3 channels, but got C=", pass.C);
  const Guard<Device> guard(images);
  const Tensor means = empty_vector(images, pass.N, ScalarType::Float);
  if (pass.N > 0) augment_gray_mean(guard.device(), pass, data_of<float>(means));
  return means;
}

template <class Device>
Tensor augment_maps_op(const Tensor& parameters, const Tensor& constants, const IntList& size,
                       const IntList& geometry) {
  check_operand("parameters", parameters, parameters, ScalarType::Float, 2);
  check_operand("constants", constants, parameters, ScalarType::Float, 1);
  check_list("augment", "size", size, 4, 1);
  AugmentPass pass{};
  pass.N = parameters.size(0), pass.H = size[0], pass.W = size[1], pass.P = size[2], pass.Q = size[3];
  pass.parameters = data_of<const float>(parameters), pass.columns = parameters.size(1);
  pass.constants = data_of<const float>(constants);
  AugmentSteps(pass, constants.size(0), false, false).read_geometry(geometry);
  CNNFAST_CHECK(pass.geometry_count > 0, "augment: maps need a geometric step, but got geometry=", show(geometry));
  const Guard<Device> guard(parameters);
  const Tensor maps = empty(parameters, {1, 1, pass.N, 6}, 2, false, ScalarType::Double);
  if (pass.N > 0) augment_maps(guard.device(), pass, data_of<double>(maps));
  return maps;
}

}  // namespace cnnfast
