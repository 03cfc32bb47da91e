// How the rows of a direct kernel's result are cut into bands, the tasks that threads take.
#pragma once

#include "common/shape.h"

namespace cnnfast::CNNFAST_ISA {

// Tasks wanted for balance on many cores, unless they would be of less than kTaskProducts multiplications, which take
// about as long as a thread does to wake up.
constexpr int64_t kTasks = 16, kTaskProducts = int64_t{1} << 19;

// Rows of a band: all of them, halved until fits(band), and while `images` do not make enough tasks.
template <class Fits>
static int64_t band_of(int64_t rows, int64_t images, int64_t products_per_row, const Fits& fits) {
  int64_t band = max<int64_t>(rows, 1);
  const auto half = [&] { return (band + 1) / 2; };
  while (band > 1 &&
         (!fits(band) || (images * ceil_div(rows, band) < kTasks && half() * products_per_row >= kTaskProducts)))
    band = half();
  return band;
}

}  // namespace cnnfast::CNNFAST_ISA
