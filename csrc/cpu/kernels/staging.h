// The source of a GatherConv, staged: the part a block of output pixels reads, copied once into scratch with its
// padding as zeros, in the type sums are kept in, and with strides undone, so that packing (once per tap) is copies of
// whole registers without a condition.
//
// A strided axis reads source coordinates i * step + origin + t * spread. Taps t and t + period, with period =
// step / gcd(step, spread), differ by whole steps, so one staged line (slot) serves both, shifted: each tap is
// (slot, shift), and neighbouring outputs of a tap are neighbours in memory whatever the stride.
#pragma once

#include "cpu/conv2d.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

struct StagedAxis {
  int64_t period, slots;
  int64_t period_shift;  // staged distance of taps t and t + period
  int64_t reach;         // staged length beyond one line's outputs

  explicit StagedAxis(const GatherAxis& axis) : period(axis.step / gcd(axis.step, axis.spread)) {
    slots = min(period, axis.taps);
    period_shift = period * axis.spread / axis.step;
    reach = axis.taps > 0 ? (axis.taps - 1) / period * period_shift : 0;
  }
  int64_t slot(int64_t tap) const { return tap % period; }
  int64_t shift(int64_t tap) const { return tap / period * period_shift; }
};

// Consecutive pixels of one output row.
struct PixelRun {
  int64_t first, count;  // numbered within the block
  int64_t n, i, j;       // where it starts
  int64_t staged;        // where tap (0, 0) of its first pixel is staged, in pixels
};

// Sizes of the staged part, in pixels, as [row][row slot][column slot][column].
struct StagedLayout {
  StagedAxis h, w;
  int64_t pitch;  // of a column slot
  int64_t row;    // of a row with all its slots

  StagedLayout(const GatherConv& conv, const PixelBlocks& blocks)
      : h(conv.h),
        w(conv.w),
        pitch((blocks.per_row > 0 ? min(blocks.size, conv.w.outputs) : conv.w.outputs) + w.reach),
        row(h.slots * w.slots * pitch) {}

  int64_t tap(int64_t r, int64_t s) const {
    return h.shift(r) * row + (h.slot(r) * w.slots + w.slot(s)) * pitch + w.shift(s);
  }
};

static inline int64_t max_runs(const GatherConv& conv, const PixelBlocks& blocks) {
  return blocks.per_row > 0 ? 1 : min(blocks.size, blocks.size / max(conv.w.outputs, int64_t{1}) + 2);
}

// The most pixels a block stages.
static inline int64_t max_staged(const GatherConv& conv, const PixelBlocks& blocks) {
  const StagedLayout layout(conv, blocks);
  const int64_t map = max(conv.h.outputs * conv.w.outputs, int64_t{1});
  const int64_t images = blocks.per_row > 0 ? 1 : min(conv.N, blocks.size / map + 2);
  return (max_runs(conv, blocks) + images * layout.h.reach) * layout.row;
}

// The runs of one block, in order; returns their number. An image's rows are staged once each, the images one after
// another.
static inline int64_t block_runs(const GatherConv& conv, const PixelBlocks& blocks, int64_t block, PixelRun* runs) {
  const StagedLayout layout(conv, blocks);
  const int64_t P = conv.h.outputs, Q = conv.w.outputs;
  if (blocks.per_row > 0) {
    const int64_t y = block / blocks.per_row, j = block % blocks.per_row * blocks.size;
    runs[0] = {0, min(blocks.size, Q - j), y / P, y % P, j, 0};
    return 1;
  }
  const int64_t begin = block * blocks.size, end = min(begin + blocks.size, conv.pixels());
  int64_t count = 0, row = 0;
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t y = pixel / Q, j = pixel % Q, n = y / P;
    if (count > 0) row += runs[count - 1].n == n ? 1 : 1 + layout.h.reach;
    runs[count++] = {pixel - begin, min(Q - j, end - pixel), n, y % P, j, row * layout.row + j};
    pixel += Q - j;
  }
  return count;
}

// How many pixels the runs hold.
static inline int64_t pixels_of(const PixelRun* runs, int64_t count) {
  return count == 0 ? 0 : runs[count - 1].first + runs[count - 1].count;
}

// to[o * to_outer + i] = from[o * from_outer + i * from_inner]
template <class T>
static void copy_block(const T* from, int64_t from_inner, int64_t from_outer, Compute<T>* to, int64_t to_outer,
                       int64_t inner, int64_t outer) {
  if (from_inner == 1) {
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) to[o * to_outer + i] = load(from + o * from_outer + i);
    }
    return;
  }
  if (from_inner == 2) {  // which the compiler knows how to vectorise
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) to[o * to_outer + i] = load(from + o * from_outer + 2 * i);
    }
    return;
  }
  // A transposition: strips of 16, so that the 16 cache lines read at a time stay in L1 until they are used up.
  constexpr int64_t kStrip = 16;
  if constexpr (std::is_same_v<T, float>) {
    if (from_outer == 1) {
      for (int64_t o = 0; o < outer; o += kStrip)
        transpose(from + o, from_inner, inner, min(kStrip, outer - o), to + o * to_outer, to_outer);
      return;
    }
  }
  for (int64_t begin = 0; begin < inner; begin += kStrip) {
    const int64_t end = min(begin + kStrip, inner);
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = begin; i < end; ++i) to[o * to_outer + i] = load(from + o * from_outer + i * from_inner);
    }
  }
}

// Stages `channels` channels, `source` pointing to the first of them. With channel_stride == 1 the channels of a pixel
// are neighbours and pixels are pixel_stride apart; else pixel_stride is 1.
template <class T>
static void stage(const GatherConv& conv, const PixelBlocks& blocks, const PixelRun* runs, int64_t count,
                  View<const T> source, int64_t channels, Compute<T>* staged, int64_t channel_stride,
                  int64_t pixel_stride) {
  using A = Compute<T>;
  const StagedLayout layout(conv, blocks);
  const bool by_pixel = channel_stride == 1;
  const int64_t outer = by_pixel ? pixel_stride : channel_stride;
  const auto clear = [&](A* to, int64_t pixels) {
    const int64_t inner = by_pixel ? channels : pixels;
    for (int64_t o = 0; o < (by_pixel ? pixels : channels); ++o) {
      for (int64_t i = 0; i < inner; ++i) to[o * outer + i] = 0;
    }
  };
  for (int64_t first = 0, last; first < count; first = last) {
    for (last = first + 1; last < count && runs[last].n == runs[first].n;) ++last;
    const int64_t rows = last - first + layout.h.reach, j = blocks.per_row > 0 ? runs[first].j : 0;
    A* line = staged + (runs[first].staged - (runs[first].j - j)) * pixel_stride;
    for (int64_t u = 0; u < rows; ++u) {
      for (int64_t slot_h = 0; slot_h < layout.h.slots; ++slot_h) {
        const int64_t h = (runs[first].i + u) * conv.h.step + conv.h.origin + slot_h * conv.h.spread;
        for (int64_t slot_w = 0; slot_w < layout.w.slots; ++slot_w, line += layout.pitch * pixel_stride) {
          const int64_t w = j * conv.w.step + conv.w.origin + slot_w * conv.w.spread;
          const Range inside =
              h >= 0 && h < conv.h.size ? window_taps(w, layout.pitch, conv.w.step, conv.w.size) : Range{0, 0};
          clear(line, inside.begin);
          clear(line + inside.end * pixel_stride, layout.pitch - inside.end);
          if (inside.begin == inside.end) continue;
          const T* from = source.at(runs[first].n, 0, h, w + inside.begin * conv.w.step);
          const int64_t from_pixel = source.stride.w * conv.w.step, pixels = inside.end - inside.begin;
          A* to = line + inside.begin * pixel_stride;
          if (by_pixel) {
            copy_block(from, source.stride.c, from_pixel, to, outer, channels, pixels);
          } else {
            copy_block(from, from_pixel, source.stride.c, to, outer, pixels, channels);
          }
        }
      }
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
