// Shape arithmetic against counting.
#include "kernels_testing.h"

using namespace cnnfast;

TEST(division_rounds_as_named) {
  for (int64_t a = -20; a <= 20; ++a) {
    for (int64_t b = 1; b <= 7; ++b) {
      CHECK_EQ(floor_div(a, b), static_cast<int64_t>(std::floor(static_cast<double>(a) / static_cast<double>(b))));
      if (a < 0) continue;
      CHECK_EQ(ceil_div(a, b), static_cast<int64_t>(std::ceil(static_cast<double>(a) / static_cast<double>(b))));
      CHECK(round_up(a, b) % b == 0 && round_up(a, b) >= a && round_up(a, b) < a + b);
    }
  }
}

TEST(window_taps_are_those_inside) {
  for (int64_t size = 0; size <= 6; ++size)
    for (int64_t kernel = 1; kernel <= 5; ++kernel)
      for (int64_t dilation = 1; dilation <= 3; ++dilation)
        for (int64_t origin = -12; origin <= 8; ++origin) {
          WHERE("size ", size, " kernel ", kernel, " dilation ", dilation, " origin ", origin);
          const Range taps = window_taps(origin, kernel, dilation, size);
          CHECK(0 <= taps.begin && taps.begin <= taps.end && taps.end <= kernel);
          for (int64_t r = 0; r < kernel; ++r) {
            const int64_t at = origin + r * dilation;
            CHECK_EQ(r >= taps.begin && r < taps.end, at >= 0 && at < size);
          }
        }
}

TEST(output_sizes_count_the_windows) {
  for (int64_t size = 1; size <= 12; ++size)
    for (int64_t kernel = 1; kernel <= 5; ++kernel)
      for (int64_t stride = 1; stride <= 4; ++stride)
        for (int64_t dilation = 1; dilation <= 3; ++dilation)
          for (int64_t padding = 0; padding <= 3; ++padding) {
            const int64_t extent = dilation * (kernel - 1) + 1, padded = size + 2 * padding;
            if (extent > padded) continue;
            WHERE("size ", size, " kernel ", kernel, " stride ", stride, " dilation ", dilation, " padding ", padding);
            int64_t whole = 0, partial = 1;
            while (whole * stride + extent <= padded) ++whole;
            CHECK_EQ(conv_output_size(size, kernel, stride, 2 * padding, dilation), whole);
            if (padding > extent / 2) continue;
            CHECK_EQ(pool_output_size(size, kernel, stride, padding, dilation, false), whole);
            // With ceil_mode: another window while something is uncovered and it would start before the right padding.
            while ((partial - 1) * stride + extent < padded && partial * stride < size + padding) ++partial;
            CHECK_EQ(pool_output_size(size, kernel, stride, padding, dilation, true), partial);
          }
}

TEST(reduction_slices_stay_in_bounds) {
  for (const int64_t batch : {1, 2, 15, 16, 17, 1000})
    for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1} << 20, int64_t{1} << 24, int64_t{1} << 40}) {
      WHERE("batch ", batch, " bytes ", bytes);
      const int64_t slices = reduction_slices(batch, bytes);
      CHECK(slices >= 1 && slices <= batch && slices <= 16);
      CHECK(slices == 1 || slices * bytes <= int64_t{32} << 20);
    }
}
