// Augmentation of every instruction set against its definitions: sampling in double, Philox's published words.
#include "cpu/augment.h"

#include "kernels_testing.h"

using namespace cnnfast;

namespace {

// A pass over a batch of its own, whose tables the tests fill in.
template <class T>
struct Case {
  Case(const Image<T>& input, Image<T>& output, AugmentType type) {
    pass.N = input.N, pass.C = input.C, pass.H = input.H, pass.W = input.W;
    pass.P = output.H, pass.Q = output.W, pass.output_channels = output.C;
    pass.input_type = pass.output_type = type;
    pass.input = {input.data.data(), input.stride};
    pass.output = {output.data.data(), output.stride};
    pass.key = &key;
  }
  void run(const CpuKernels& kernels) {
    pass.parameters = parameters.data(), pass.constants = constants.data();
    pass.columns = static_cast<int64_t>(parameters.size()) / max(pass.N, int64_t{1});
    Buffer<float> scratch(augment_scratch(pass));
    for (int64_t n = 0; n < pass.N; ++n) kernels.augment.image(pass, n, scratch.data());
  }
  void add(GeometryStep step) { pass.geometry[pass.geometry_count++] = step; }
  void add(PointStep step) { pass.points[pass.point_count++] = step; }

  AugmentPass pass{};
  std::vector<float> parameters, constants;
  int64_t key = 0x123456789abcdef;
};

// A flip that is asked for, then a crop of a padded image: whole pixels, so bits can be compared.
template <class T>
void check_whole_pixels(const CpuKernels& kernels, AugmentType type, Layout layout, int64_t H, int64_t W,
                        bool nearest) {
  Random random(static_cast<uint64_t>(H * 31 + W));
  const int64_t N = 3, C = 2, P = H + 1, Q = W + 2, pad = 2;
  Image<T> input(N, C, H, W, layout), output(N, C, P, Q, layout);
  for_each_element(input, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
    const double value = static_cast<double>(random.between(1, 200));
    store(input.data.data() + input.offset(n, c, h, w), static_cast<Compute<T>>(value));
  });
  Case<T> c(input, output, type);
  c.pass.nearest = nearest;
  c.constants = {pad, pad, 7, 9};  // padding, then what is around each channel
  c.pass.fill = 2;
  for (int64_t n = 0; n < N; ++n) {
    const auto top = static_cast<float>(random.between(0, 3)), left = static_cast<float>(random.between(0, 2));
    c.parameters.insert(c.parameters.end(), {static_cast<float>(n % 2), static_cast<float>(n / 2), top, left});
  }
  c.add({GeometryKind::flip, H, W, {0, 1, -1, -1, -1, -1}, 0});
  c.add({GeometryKind::crop, H, W, {2, 3, -1, -1, -1, -1}, 0});
  c.run(kernels);
  for_each_element(output, [&](int64_t n, int64_t channel, int64_t p, int64_t q) {
    const float* row = c.parameters.data() + 4 * n;
    int64_t h = p + static_cast<int64_t>(row[2]) - pad, w = q + static_cast<int64_t>(row[3]) - pad;
    const bool inside = h >= 0 && h < H && w >= 0 && w < W;
    h = row[1] != 0 ? H - 1 - h : h, w = row[0] != 0 ? W - 1 - w : w;
    CHECK_EQ(output.at(n, channel, p, q),
             inside ? input.at(n, channel, h, w) : c.constants[2 + static_cast<size_t>(channel)]);
  });
}

double bilinear(const Image<float>& input, int64_t n, int64_t c, double x, double y) {
  const auto at = [&](double h, double w) {
    const bool inside = h >= 0 && h < static_cast<double>(input.H) && w >= 0 && w < static_cast<double>(input.W);
    return inside ? input.at(n, c, static_cast<int64_t>(h), static_cast<int64_t>(w)) : 0.0;
  };
  const double left = std::floor(x), top = std::floor(y), right_share = x - left, bottom_share = y - top;
  const double upper = at(top, left) * (1 - right_share) + at(top, left + 1) * right_share;
  const double lower = at(top + 1, left) * (1 - right_share) + at(top + 1, left + 1) * right_share;
  return upper * (1 - bottom_share) + lower * bottom_share;
}

void check_rotation(const CpuKernels& kernels, int64_t H, int64_t W) {
  Random random(static_cast<uint64_t>(H + W));
  const int64_t N = 4, C = 3;
  Image<float> input(N, C, H, W, Layout::kNchw), output(N, C, H, W, Layout::kNchw);
  fill(input.data, random);
  Case<float> c(input, output, AugmentType::float32);
  const float center_x = static_cast<float>(W - 1) / 2, center_y = static_cast<float>(H - 1) / 2;
  c.constants = {-1, center_x, center_y, 0, 0, 0};
  c.pass.fill = 3;
  c.parameters = {0, 37.5f, -90, 611};
  c.add({GeometryKind::affine, H, W, {0, -1, -1, -1, -1, -1}, 0});
  c.run(kernels);
  for_each_element(output, [&](int64_t n, int64_t channel, int64_t p, int64_t q) {
    const double angle = -static_cast<double>(c.parameters[static_cast<size_t>(n)]) * M_PI / 180;
    const double x = static_cast<double>(q) - center_x, y = static_cast<double>(p) - center_y;
    const double from_x = std::cos(angle) * x + std::sin(angle) * y + center_x;
    const double from_y = -std::sin(angle) * x + std::cos(angle) * y + center_y;
    const double error = output.at(n, channel, p, q) - bilinear(input, n, channel, from_x, from_y);
    CHECK(std::fabs(error) < 1e-6 * static_cast<double>(H + W) * 6);
  });
}

double normal_of(int64_t key, int64_t element, uint32_t channel, uint32_t image, uint32_t stream) {
  const auto counter = static_cast<uint32_t>(element / kNoiseBlock * kNoiseStride + element % kNoiseStride);
  const PhiloxWords words = philox({{counter, channel, image, stream}}, static_cast<uint64_t>(key));
  const int64_t which = element % kNoiseBlock / kNoiseStride;
  const uint32_t a = words.word[which / 2 * 2], b = words.word[which / 2 * 2 + 1];
  const double radius = std::sqrt(-2 * std::log((static_cast<double>(a >> 8) + 1) * 0x1p-24));
  const double angle = static_cast<double>(static_cast<int32_t>(b << 2)) * 0x1p-32 * M_PI / 2;
  const bool sine = (which % 2 == 0) == ((b & 0x40000000u) != 0);
  return (b >> 31 != 0 ? -radius : radius) * (sine ? std::sin(angle) : std::cos(angle));
}

}  // namespace

TEST(philox) {
  // Random123's known answers.
  const uint32_t ones = 0xffffffffu;
  const auto equal = [](const PhiloxWords& a, const PhiloxWords& b) {
    for (int i = 0; i < 4; ++i) CHECK_EQ(a.word[i], b.word[i]);
  };
  equal(philox({{0, 0, 0, 0}}, 0), {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}});
  equal(philox({{ones, ones, ones, ones}}, ~uint64_t{0}), {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}});
  equal(philox({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0x299f31d0a4093822u),
        {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}});
}

TEST(augment_whole_pixels) {
  for (const CpuKernels* kernels : runnable_kernels()) {
    for (const Layout layout : kLayouts) {
      for (const bool nearest : {false, true}) {
        for (const auto& [H, W] : {std::pair<int64_t, int64_t>{1, 1}, {1, 9}, {7, 1}, {5, 17}, {40, 33}}) {
          WHERE(kernels->isa, " ", H, " x ", W, nearest ? " nearest" : " bilinear", " layout ",
                static_cast<int>(layout));
          check_whole_pixels<float>(*kernels, AugmentType::float32, layout, H, W, nearest);
          check_whole_pixels<double>(*kernels, AugmentType::float64, layout, H, W, nearest);
          check_whole_pixels<bfloat16>(*kernels, AugmentType::bfloat16, layout, H, W, nearest);
          check_whole_pixels<float16>(*kernels, AugmentType::float16, layout, H, W, nearest);
        }
      }
    }
  }
}

TEST(augment_rotation) {
  for (const CpuKernels* kernels : runnable_kernels()) {
    for (const auto& [H, W] : {std::pair<int64_t, int64_t>{1, 1}, {28, 28}, {9, 30}, {130, 120}}) {
      WHERE(kernels->isa, " ", H, " x ", W);
      check_rotation(*kernels, H, W);
    }
  }
}

TEST(augment_noise) {
  const int64_t N = 2, C = 2, H = 37, W = 53;
  for (const CpuKernels* kernels : runnable_kernels()) {
    WHERE(kernels->isa);
    Image<float> input(N, C, H, W, Layout::kNchw), output(N, C, H, W, Layout::kNchw);
    for (int64_t i = 0; i < input.data.size(); ++i) input.data.set(i, 0);
    Case<float> c(input, output, AugmentType::float32);
    c.constants = {0, 1, -INFINITY, INFINITY};
    c.parameters = {};
    c.add({PointKind::noise, 5, 0, false});
    c.run(*kernels);
    double sum = 0, squares = 0;
    for_each_element(output, [&](int64_t n, int64_t channel, int64_t p, int64_t q) {
      const double value = output.at(n, channel, p, q);
      const double expected = normal_of(c.key, p * W + q, static_cast<uint32_t>(channel), static_cast<uint32_t>(n), 5);
      CHECK(std::fabs(value - expected) < 2e-6);
      sum += value, squares += value * value;
    });
    const auto count = static_cast<double>(N * C * H * W);
    CHECK(std::fabs(sum / count) < 4 / std::sqrt(count));
    CHECK(std::fabs(squares / count - 1) < 4 * std::sqrt(2 / count));
  }
}
