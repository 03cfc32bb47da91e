// A block of channels of some rows of one image, copied to where a register holds one pixel of as many channels as
// there are lanes, whatever the image's layout and type; and results on the way back.
#pragma once

#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/storage.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

// Rows [top, top + rows) and columns [left, left + columns) of `channels` channels from c on, of image n of H x W,
// beyond whose edges they may reach. In its slab, rows and columns lie one after another.
struct SlabWindow {
  int64_t n, c, channels;
  int64_t top, rows, left, columns;
  int64_t H, W;
};

// Of a window, the rows and columns inside its image.
struct SlabInside {
  int64_t begin, end, first, last;

  explicit SlabInside(const SlabWindow& window)
      : begin(max<int64_t>(0, -window.top)),
        end(min(window.rows, window.H - window.top)),
        first(min(max<int64_t>(0, -window.left), window.columns)),
        last(max(first, min(window.columns, window.W - window.left))) {}
};

template <class A>
CNNFAST_INLINE void fill_zeros(A* to, int64_t registers) {
  for (int64_t i = 0; i < registers; ++i) store_vec(to + i * kLanes<A>, Vec<A>{});
}

// Pixels of a row that are transposed at a time where they have 16 bits.
constexpr int64_t kTransposedPixels = 64;

// A row's `count` elements from one type to another.
template <class From, class To>
CNNFAST_INLINE void convert_row(const From* from, To* to, int64_t count) {
  constexpr int64_t kLane = kLanes<float>;
  int64_t i = 0;
  for (; i + kLane <= count; i += kLane) store_lanes(to + i, load_lanes<1, Vec<float>>(from + i));
  for (; i < count; ++i) store(to + i, load(from + i));
}

// `count` neighbouring pixels.
template <class T>
CNNFAST_INLINE void read_pixels(const T* from, const Strides& stride, int64_t channels, int64_t count, Compute<T>* to) {
  using A = Compute<T>;
  if (stride.c == 1 && channels == kLanes<A>) {
    // Unrolled: a loop of one load and one store is bound by its branch. Pixels lie too far apart for the processor to
    // see what comes next: their next line, which the next blocks of channels read.
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; ++i) {
      store_vec(to + i * kLanes<A>, load_lanes<1, Vec<A>>(from + i * stride.w));
      __builtin_prefetch(reinterpret_cast<const char*>(from + i * stride.w) + kLineBytes, 0, 2);
    }
    return;
  }
  if (channels < kLanes<A>) fill_zeros(to, count);
  if constexpr (sizeof(T) == 4) {
    if (stride.w == 1) return transpose(from, stride.c, channels, count, to, kLanes<A>);
  } else if constexpr (sizeof(T) == 2) {
    if (stride.w == 1) {
      A rows[kLanes<A>][kTransposedPixels];
      for (int64_t i = 0; i < count; i += kTransposedPixels) {
        const int64_t pixels = min(count - i, kTransposedPixels);
        for (int64_t c = 0; c < channels; ++c) convert_row(from + c * stride.c + i, rows[c], pixels);
        transpose(rows[0], kTransposedPixels, channels, pixels, to + i * kLanes<A>, kLanes<A>);
      }
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < channels; ++c) to[i * kLanes<A> + c] = load(from + i * stride.w + c * stride.c);
}

template <class T>
CNNFAST_INLINE void write_pixels(const Compute<T>* from, int64_t channels, int64_t count, T* to,
                                 const Strides& stride) {
  using A = Compute<T>;
  if (stride.c == 1 && channels == kLanes<A>) {
    for (int64_t i = 0; i < count; ++i) store_lanes(to + i * stride.w, load_vec(from + i * kLanes<A>));
    return;
  }
  if constexpr (sizeof(T) == 4) {
    if (stride.w == 1) return transpose(from, kLanes<A>, count, channels, to, stride.c);
  } else if constexpr (sizeof(T) == 2) {
    if (stride.w == 1) {
      A rows[kLanes<A>][kTransposedPixels];
      for (int64_t i = 0; i < count; i += kTransposedPixels) {
        const int64_t pixels = min(count - i, kTransposedPixels);
        transpose(from + i * kLanes<A>, kLanes<A>, pixels, channels, rows[0], kTransposedPixels);
        for (int64_t c = 0; c < channels; ++c) convert_row(rows[c], to + c * stride.c + i, pixels);
      }
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < channels; ++c) store(to + i * stride.w + c * stride.c, from[i * kLanes<A> + c]);
}

// What lies outside the image is not written: nor is it read (depthwise_tile.h).
template <class T>
static void fill_slab(const SlabWindow& window, View<const T> from, Compute<T>* to) {
  constexpr int64_t kPixel = kLanes<Compute<T>>;
  const SlabInside inside(window);
  for (int64_t r = inside.begin; r < inside.end; ++r) {
    read_pixels(from.at(window.n, window.c, window.top + r, window.left + inside.first), from.stride, window.channels,
                inside.last - inside.first, to + (r * window.columns + inside.first) * kPixel);
  }
}

// The way back; all of the window lies inside the image.
template <class T>
static void write_slab(const SlabWindow& window, const Compute<T>* from, View<T> to) {
  constexpr int64_t kPixel = kLanes<Compute<T>>;
  // Rows without a gap are written as one.
  const bool joined = to.stride.h == window.columns * to.stride.w;
  const int64_t rows = joined ? 1 : window.rows, columns = joined ? window.rows * window.columns : window.columns;
  for (int64_t r = 0; r < rows; ++r)
    write_pixels(from + r * columns * kPixel, window.channels, columns,
                 to.at(window.n, window.c, window.top + r, window.left), to.stride);
}

}  // namespace cnnfast::CNNFAST_ISA
