// A band of one image's rows, copied with its padding to dense planes, so that the direct kernels need no bounds.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Per channel `rows` rows of `pitch` columns; row 0 is row `top` of the padded image, column 0 its first column.
struct PaddedPlanes {
  int64_t rows, pitch;

  int64_t plane() const { return rows * pitch; }
};

// Calls row(c, h, to, count) for each input row within the band, to write its first `count` elements to `to`; the rest
// of the planes is zero.
template <class Row>
static void fill_padded(const Conv2dShape& conv, int64_t top, const PaddedPlanes& padded, float* out, const Row& row) {
  const int64_t left = min(conv.pad_left, padded.pitch);
  const int64_t inner = max<int64_t>(0, min(conv.W, padded.pitch - left));
  std::memset(out, 0, static_cast<size_t>(conv.C * padded.plane()) * sizeof(float));
  const int64_t begin = max<int64_t>(0, conv.pad_top - top), end = min(padded.rows, conv.H + conv.pad_top - top);
  for (int64_t c = 0; c < conv.C; ++c)
    for (int64_t r = begin; r < end; ++r)
      row(c, top + r - conv.pad_top, out + c * padded.plane() + r * padded.pitch + left, inner);
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

}  // namespace cnnfast::CNNFAST_ISA
