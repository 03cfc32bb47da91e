// Storage conversions: every half-precision value there is, and the rounding of floats between them.
#include <cmath>
#include <limits>

#include "kernels_testing.h"

using namespace cnnfast;

namespace {

struct Format {
  int mantissa_bits, least_exponent;
  double largest;
};
constexpr Format kFloat16{10, -14, 65504.0}, kBfloat16{7, -126, 0x1.fep127};

// x rounded to nearest, ties to even, computed in double, where every step is exact.
double nearest(double x, const Format& format) {
  if (x == 0 || std::isinf(x)) return x;
  const int exponent = std::max(std::ilogb(x), format.least_exponent);
  const double unit = std::ldexp(1.0, exponent - format.mantissa_bits);
  const double result = std::nearbyint(x / unit) * unit;
  return std::abs(result) > format.largest ? std::copysign(INFINITY, x) : result;
}

template <class T>
void check_all_values() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const T value{static_cast<uint16_t>(bits)};
    const float x = load(&value);
    T back;
    store(&back, x);
    if (std::isnan(x)) {
      // Quiet, as any arithmetic makes it; the sign and the rest of the payload stay.
      const uint32_t quiet = std::is_same_v<T, float16> ? 0x200 : 0x40;
      CHECK_EQ(back.bits, bits | quiet);
    } else {
      CHECK_EQ(back.bits, bits);
    }
  }
}

template <class T>
void check_rounding(float x, const Format& format) {
  T stored;
  store(&stored, x);
  const float result = load(&stored);
  if (std::isnan(x)) {
    CHECK(std::isnan(result));
    return;
  }
  WHERE("x = ", x);
  CHECK_EQ(static_cast<double>(result), nearest(x, format));
  CHECK_EQ(std::signbit(result), std::signbit(x));
}

// Every midpoint between neighbours, and the floats just beside it, with both signs; then random floats.
template <class T>
void check_all_roundings(const Format& format) {
  for (uint32_t bits = 0; bits < 0x7fff; ++bits) {
    const T low{static_cast<uint16_t>(bits)}, high{static_cast<uint16_t>(bits + 1)};
    if (!std::isfinite(load(&low)) || !std::isfinite(load(&high))) continue;
    const float middle = static_cast<float>((static_cast<double>(load(&low)) + static_cast<double>(load(&high))) / 2);
    for (const float x : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, INFINITY)}) {
      check_rounding<T>(x, format);
      check_rounding<T>(-x, format);
    }
  }
  Random random(1);
  for (int i = 0; i < 200000; ++i) check_rounding<T>(bits_float(random.bits()), format);
}

}  // namespace

TEST(every_float16_round_trips) { check_all_values<float16>(); }
TEST(every_bfloat16_round_trips) { check_all_values<bfloat16>(); }
TEST(float16_rounds_to_nearest_even) { check_all_roundings<float16>(kFloat16); }
TEST(bfloat16_rounds_to_nearest_even) { check_all_roundings<bfloat16>(kBfloat16); }

TEST(overflow_and_infinity) {
  for (const float x : {65504.0f, 65519.996f, 65520.0f, 65536.0f, INFINITY, std::numeric_limits<float>::max()}) {
    check_rounding<float16>(x, kFloat16);
    check_rounding<float16>(-x, kFloat16);
    check_rounding<bfloat16>(x, kBfloat16);
    check_rounding<bfloat16>(-x, kBfloat16);
  }
}

TEST(wide_types_are_stored_as_they_are) {
  float f;
  store(&f, 0.1f);
  CHECK_EQ(load(&f), 0.1f);
  double d;
  store(&d, 0.1);
  CHECK_EQ(load(&d), 0.1);
}
