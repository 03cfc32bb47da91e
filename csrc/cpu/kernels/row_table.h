// Where the pixels of a block read a source whose channels are neighbours (channels_last): for each tap and pixel, a
// pointer to the source pixel's channels, or to zeros where the tap lies in the padding. Strides, dilation and borders
// then cost nothing in the loops, which read the source in place (the "indirect convolution").
#pragma once

#include "cpu/conv2d.h"
#include "cpu/kernels/scratch.h"

namespace cnnfast::CNNFAST_ISA {

// From here on, finding the rows of a tap is little beside multiplying them.
constexpr int64_t kIndirectChannels = 8;

template <class T>
static bool has_rows(const GatherConv& conv, const Strides& source) {
  return std::is_same_v<T, Compute<T>> && source.c == 1 && conv.C >= kIndirectChannels;
}

template <class A>
struct RowTable {
  const A** rows;  // [tap][pixel of the block]
  A* zeros;        // [C]

  RowTable(Scratch& scratch, const GatherConv& conv, const PixelBlocks& blocks)
      : rows(scratch.take<const A*>(conv.taps() * blocks.size)), zeros(scratch.take<A>(conv.C)) {}

  // Of a block of pixels that are numbered through; source points to the group's first channel.
  void fill(const GatherConv& conv, const PixelBlocks& blocks, int64_t block, View<const A> source) const {
    const int64_t P = conv.h.outputs, Q = conv.w.outputs;
    const int64_t begin = block * blocks.size, end = min(begin + blocks.size, conv.pixels());
    for (int64_t c = 0; c < conv.C; ++c) zeros[c] = 0;
    for (int64_t pixel = begin, count; pixel < end; pixel += count) {
      const int64_t y = pixel / Q, n = y / P, i = y % P, j = pixel % Q;
      count = min(Q - j, end - pixel);
      const A** row = rows + pixel - begin;
      for (int64_t tap = 0; tap < conv.taps(); ++tap, row += blocks.size) {
        const int64_t h = i * conv.h.step + conv.h.origin + tap / conv.w.taps * conv.h.spread;
        const int64_t w = j * conv.w.step + conv.w.origin + tap % conv.w.taps * conv.w.spread;
        const Range inside = h >= 0 && h < conv.h.size ? window_taps(w, count, conv.w.step, conv.w.size) : Range{0, 0};
        for (int64_t q = 0; q < inside.begin; ++q) row[q] = zeros;
        for (int64_t q = inside.begin; q < inside.end; ++q) row[q] = source.at(n, 0, h, w + q * conv.w.step);
        for (int64_t q = inside.end; q < count; ++q) row[q] = zeros;
      }
    }
  }
};

}  // namespace cnnfast::CNNFAST_ISA
