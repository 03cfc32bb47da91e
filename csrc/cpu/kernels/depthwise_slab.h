// Some rows of a block of channels of one image, copied with their padding to where the depthwise kernels read them
// alike, whatever the image's layout and type; and results on the way back.
//
// A register holds neighbouring columns of one channel, or one pixel of as many channels as there are lanes.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Column j of a row begins at offset(j). Where registers hold columns and windows are 2 apart, even columns lie
// together, and odd ones behind them.
struct Slab {
  int64_t block;  // channels: 1 or a register's lanes
  int64_t split;  // 1: even columns, then odd ones
  int64_t phase;  // where these begin
  int64_t pitch;  // from row to row

  CNNFAST_INLINE int64_t offset(int64_t column) const {
    return (column & split) * phase + (column >> split) * block;
  }
  // How many of the columns below `column` are even (parity 0) or odd (1); all of them if nothing is split.
  CNNFAST_INLINE int64_t count(int64_t column, int64_t parity) const { return (column + split - parity) >> split; }
};

// Columns [0, columns) in registers that hold `block` channels; whole registers may be loaded and stored at each.
template <class A>
static Slab make_slab(int64_t block, int64_t split, int64_t columns) {
  if (block > 1) return {block, 0, 0, columns * block};
  const int64_t phase = round_up((columns + split) >> split, kLanes<A>);
  return {1, split, phase, phase << split};
}

// Rows [top, top + rows) and columns [left, left + columns) of `channels` channels from c on, of image n of H x W.
struct SlabWindow {
  int64_t n, c, channels;
  int64_t top, rows, left, columns;
  int64_t H, W;
};

template <class A>
CNNFAST_INLINE void fill_zeros(A* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<A>) store_vec(to + i, Vec<A>{});
}

template <class T>
CNNFAST_INLINE Vec<Compute<T>> load_as_sum(const T* from) {
  using A = Compute<T>;
  if constexpr (sizeof(T) == sizeof(A)) {
    return load_vec(from);
  } else {
    A to[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) to[i] = load(from + i);
    return load_vec(to);
  }
}

template <class T>
CNNFAST_INLINE void store_sum(T* to, Vec<Compute<T>> sum) {
  using A = Compute<T>;
  if constexpr (sizeof(T) == sizeof(A)) {
    store_vec(to, sum);
  } else {
    A from[kLanes<A>];
    store_vec(from, sum);
    for (int i = 0; i < kLanes<A>; ++i) store(to + i, from[i]);
  }
}

// Columns [begin, begin + count) of one row of a block of channels.
template <class T>
static void copy_to_slab(const Slab& slab, const T* from, const Strides& stride, int64_t channels, int64_t begin,
                         int64_t count, Compute<T>* row) {
  using A = Compute<T>;
  constexpr bool kFloat = sizeof(T) == 4;
  if (slab.block == 1) {
    if constexpr (kFloat) {
      if (stride.w == 1 && slab.split == 0) return copy_row(from, row + begin, count);
      if (stride.w == 1) {
        // An odd first column has its even neighbour in no pair.
        if ((begin & 1) != 0) {
          row[slab.offset(begin)] = *from;
          ++from, ++begin, --count;
        }
        split_even_odd(from, row + slab.offset(begin), row + slab.offset(begin + 1), count / 2);
        if ((count & 1) != 0) row[slab.offset(begin + count - 1)] = from[count - 1];
        return;
      }
    }
    for (int64_t i = 0; i < count; ++i) row[slab.offset(begin + i)] = load(from + i * stride.w);
    return;
  }
  row += begin * slab.block;
  if (stride.c == 1 && channels == kLanes<A>) {
    for (int64_t i = 0; i < count; ++i) store_vec(row + i * kLanes<A>, load_as_sum(from + i * stride.w));
    return;
  }
  if (channels < kLanes<A>) fill_zeros(row, count * kLanes<A>);
  if constexpr (kFloat) {
    if (stride.w == 1) return transpose(from, stride.c, channels, count, row, kLanes<A>);
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < channels; ++c) row[i * kLanes<A> + c] = load(from + i * stride.w + c * stride.c);
}

// What lies outside the image is zero.
template <class T>
static void fill_slab(const Slab& slab, const SlabWindow& window, View<const T> from, Compute<T>* to) {
  const int64_t first = min(max<int64_t>(0, -window.left), window.columns);
  const int64_t last = max(first, min(window.columns, window.W - window.left));
  for (int64_t r = 0; r < window.rows; ++r, to += slab.pitch) {
    const int64_t h = window.top + r;
    const bool inside = h >= 0 && h < window.H && first < last;
    if (!inside) {
      fill_zeros(to, slab.pitch);
      continue;
    }
    // Whole registers: what they overwrite follows later.
    for (int64_t parity = 0; parity <= slab.split; ++parity) {
      Compute<T>* part = to + parity * slab.phase;
      const int64_t size = slab.split == 0 ? slab.pitch : slab.phase;
      fill_zeros(part, slab.count(first, parity) * slab.block);
      const int64_t begin = slab.count(last, parity) * slab.block;
      fill_zeros(part + begin, size - begin);
    }
    copy_to_slab(slab, from.at(window.n, window.c, h, window.left + first), from.stride, window.channels, first,
                 last - first, to);
  }
}

// The way back: all of the window lies inside the image, and its left is 0.
template <class T>
static void write_slab(const Slab& slab, const SlabWindow& window, const Compute<T>* from, View<T> to) {
  using A = Compute<T>;
  const Strides& stride = to.stride;
  if constexpr (sizeof(T) == 4) {
    // Whole planes are transposed in one go.
    if (slab.block > 1 && stride.w == 1 && stride.h == window.columns && window.channels == kLanes<A> &&
        slab.pitch == window.columns * kLanes<A>) {
      return transpose(from, kLanes<A>, window.rows * window.columns, window.channels,
                       to.at(window.n, window.c, window.top, 0), stride.c);
    }
  }
  for (int64_t r = 0; r < window.rows; ++r, from += slab.pitch) {
    T* row = to.at(window.n, window.c, window.top + r, 0);
    if (slab.block == 1) {
      for (int64_t parity = 0; parity <= slab.split; ++parity) {
        const A* part = from + parity * slab.phase;
        T* out = row + parity * stride.w;
        const int64_t step = stride.w << slab.split, count = slab.count(window.columns, parity);
        for (int64_t i = 0; i < count; ++i) store(out + i * step, part[i]);
      }
    } else if (stride.c == 1 && window.channels == kLanes<A>) {
      for (int64_t i = 0; i < window.columns; ++i) store_sum(row + i * stride.w, load_vec(from + i * kLanes<A>));
    } else {
      if constexpr (sizeof(T) == 4) {
        if (stride.w == 1 && window.channels == kLanes<A>) {
          transpose(from, kLanes<A>, window.columns, window.channels, row, stride.c);
          continue;
        }
      }
      for (int64_t c = 0; c < window.channels; ++c)
        for (int64_t i = 0; i < window.columns; ++i) store(row + c * stride.c + i * stride.w, from[i * kLanes<A> + c]);
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
