// A band of one image's rows, copied with its padding to dense planes, so that the direct kernels need no bounds.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Per channel `rows` rows of `pitch` columns; row 0 is row `top` of the padded image, column 0 its first column.
struct PaddedPlanes {
  int64_t rows, pitch;

  int64_t plane() const { return rows * pitch; }
};

// Of short rows, clearing all of them at once takes less than the ends of each.
constexpr int64_t kShortRow = 64;

// Padding is narrow: not worth the call of memset that gcc would make of the plain loop.
CNNFAST_INLINE void clear_padding(float* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    from[i] = 0;
    forget_loads();
  }
}

// Calls row(c, h, to, count) for each input row within the band, to write its first `count` elements to `to`; the rest
// of the planes is zero.
template <class Row>
static void fill_padded(const Conv2dShape& conv, int64_t top, const PaddedPlanes& padded, float* out, const Row& row) {
  const int64_t left = min(conv.pad_left, padded.pitch);
  const int64_t inner = max<int64_t>(0, min(conv.W, padded.pitch - left));
  if (padded.pitch <= kShortRow) {
    std::memset(out, 0, static_cast<size_t>(conv.C * padded.plane()) * sizeof(float));
    const int64_t begin = max<int64_t>(0, conv.pad_top - top), end = min(padded.rows, conv.H + conv.pad_top - top);
    for (int64_t c = 0; c < conv.C; ++c)
      for (int64_t r = begin; r < end; ++r)
        row(c, top + r - conv.pad_top, out + c * padded.plane() + r * padded.pitch + left, inner);
    return;
  }
  for (int64_t c = 0; c < conv.C; ++c) {
    for (int64_t r = 0; r < padded.rows; ++r, out += padded.pitch) {
      const int64_t h = top + r - conv.pad_top;
      if (h < 0 || h >= conv.H) {
        std::memset(out, 0, static_cast<size_t>(padded.pitch) * sizeof(float));
        continue;
      }
      clear_padding(out, left);
      row(c, h, out + left, inner);
      clear_padding(out + left + inner, padded.pitch - left - inner);
    }
  }
}

static void copy_padded(const Conv2dShape& conv, View<const float> input, int64_t n, int64_t top,
                        const PaddedPlanes& padded, float* out) {
  fill_padded(conv, top, padded, out, [&](int64_t c, int64_t h, float* __restrict to, int64_t count) {
    const float* in = input.at(n, c, h, 0);
    if (input.stride.w == 1) {
      copy_row(in, to, count);
    } else {
      for (int64_t x = 0; x < count; ++x) to[x] = in[x * input.stride.w];
    }
  });
}

// The same with even and odd columns apart: each row is two halves of `half` columns.
struct HalvedPlanes {
  int64_t rows, half;
};

static void copy_halves(const Conv2dShape& conv, View<const float> input, int64_t n, int64_t top,
                        const HalvedPlanes& padded, float* __restrict out) {
  const int64_t left = min(conv.pad_left, 2 * padded.half);
  const int64_t columns = max<int64_t>(0, min(conv.W, 2 * padded.half - left));
  for (int64_t c = 0; c < conv.C; ++c) {
    for (int64_t r = 0; r < padded.rows; ++r, out += 2 * padded.half) {
      const int64_t h = top + r - conv.pad_top;
      if (h < 0 || h >= conv.H) {
        std::memset(out, 0, static_cast<size_t>(2 * padded.half) * sizeof(float));
        continue;
      }
      float* half[2];  // where the input's even and odd columns go
      for (int64_t parity = 0; parity < 2; ++parity) {
        const int64_t first = (left + 1 - parity) / 2, last = (left + columns + 1 - parity) / 2;
        float* to = out + parity * padded.half;
        clear_padding(to, first);
        clear_padding(to + last, padded.half - last);
        half[(left + parity) % 2] = to + first;
      }
      const float* in = input.at(n, c, h, 0);
      int64_t x = 0;
      if (input.stride.w == 1) {
        x = columns / 2 * 2;
        split_even_odd(in, half[0], half[1], x / 2);
      }
      for (; x < columns; ++x) half[x % 2][x / 2] = in[x * input.stride.w];
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
