// A band of one image's rows, copied with its padding to dense planes, so that the direct kernels need no bounds.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Per channel `rows` rows of `pitch` columns; row 0 is row `top` of the padded image, column 0 its first column.
struct PaddedPlanes {
  int64_t rows, pitch;

  int64_t plane() const { return rows * pitch; }
};

static void copy_padded(const Conv2dShape& conv, View<const float> input, int64_t n, int64_t top,
                        const PaddedPlanes& padded, float* __restrict out) {
  const int64_t left = min(conv.pad_left, padded.pitch);
  const int64_t inner = max<int64_t>(0, min(conv.W, padded.pitch - left));
  std::memset(out, 0, static_cast<size_t>(conv.C * padded.plane()) * sizeof(float));
  const int64_t begin = max<int64_t>(0, conv.pad_top - top), end = min(padded.rows, conv.H + conv.pad_top - top);
  for (int64_t c = 0; c < conv.C; ++c) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = input.at(n, c, top + row - conv.pad_top, 0);
      float* to = out + c * padded.plane() + row * padded.pitch + left;
      if (input.stride.w == 1) {
        copy_row(in, to, inner);
      } else {
        for (int64_t x = 0; x < inner; ++x) to[x] = in[x * input.stride.w];
      }
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
