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

// Mostly a few elements: not worth the call of memset that gcc would make of the plain loop.
CNNFAST_INLINE void clear_padding(float* from, int64_t count) {
  if (count > 16) {
    std::memset(from, 0, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    from[i] = 0;
    forget_loads();
  }
}

// Calls row(c, h, to) for each input row within the band, to write into the padded row at `to`, and clears the rest:
// clear_ends(to) what `row` leaves.
template <class Ends, class Row>
static void fill_rows(const Conv2dShape& conv, int64_t top, const PaddedPlanes& padded, float* out,
                      const Ends& clear_ends, const Row& row) {
  const auto clear = [](float* from, int64_t count) {
    std::memset(from, 0, static_cast<size_t>(count) * sizeof(float));
  };
  const int64_t begin = min(max<int64_t>(0, conv.pad_top - top), padded.rows);
  const int64_t end = min(max(begin, conv.H + conv.pad_top - top), padded.rows);
  if (padded.pitch <= kShortRow) {
    clear(out, conv.C * padded.plane());
    for (int64_t c = 0; c < conv.C; ++c, out += padded.plane())
      for (int64_t r = begin; r < end; ++r) row(c, top + r - conv.pad_top, out + r * padded.pitch);
    return;
  }
  for (int64_t c = 0; c < conv.C; ++c, out += padded.plane()) {
    clear(out, begin * padded.pitch);
    for (int64_t r = begin; r < end; ++r) {
      clear_ends(out + r * padded.pitch);
      row(c, top + r - conv.pad_top, out + r * padded.pitch);
    }
    clear(out + end * padded.pitch, (padded.rows - end) * padded.pitch);
  }
}

// Calls row(c, h, to, count) for each input row within the band, to write its first `count` elements to `to`; the rest
// of the planes is zero.
template <class Row>
static void fill_padded(const Conv2dShape& conv, int64_t top, const PaddedPlanes& padded, float* out, const Row& row) {
  const int64_t left = min(conv.pad_left, padded.pitch);
  const int64_t columns = max<int64_t>(0, min(conv.W, padded.pitch - left));
  const auto clear_ends = [&](float* to) {
    clear_padding(to, left);
    clear_padding(to + left + columns, padded.pitch - left - columns);
  };
  fill_rows(conv, top, padded, out, clear_ends,
            [&](int64_t c, int64_t h, float* to) { row(c, h, to + left, columns); });
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

// The same with even and odd columns apart: each row is two halves.
static void copy_halves(const Conv2dShape& conv, View<const float> input, int64_t n, int64_t top,
                        const PaddedPlanes& padded, float* out) {
  const int64_t half = padded.pitch / 2, left = min(conv.pad_left, padded.pitch);
  const int64_t columns = max<int64_t>(0, min(conv.W, padded.pitch - left));
  const auto clear_ends = [&](float* to) {
    for (int64_t parity = 0; parity < 2; ++parity, to += half) {
      const int64_t first = (left + 1 - parity) / 2, last = (left + columns + 1 - parity) / 2;
      clear_padding(to, first);
      clear_padding(to + last, half - last);
    }
  };
  // Column x of the input is column left + x of the row.
  const int64_t even = left % 2 * half + left / 2, odd = (left + 1) % 2 * half + (left + 1) / 2;
  fill_rows(conv, top, padded, out, clear_ends, [&](int64_t c, int64_t h, float* __restrict to) {
    const float* in = input.at(n, c, h, 0);
    int64_t x = 0;
    if (input.stride.w == 1) {
      x = columns / 2 * 2;
      split_even_odd(in, to + even, to + odd, x / 2);
    }
    for (; x < columns; ++x) to[(x % 2 == 0 ? even : odd) + x / 2] = in[x * input.stride.w];
  });
}

}  // namespace cnnfast::CNNFAST_ISA
