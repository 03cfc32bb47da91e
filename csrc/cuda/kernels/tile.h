// Between global and shared memory: a band of padded rows, and results staged so that they are written side by side.
#pragma once

#include "cuda/kernels/launch.h"
#include "cuda/plan.h"

namespace cnnfast {

// A thread's place in its block, as int: what shared memory holds is counted in ints.
CNNFAST_DEVICE int thread_rank() { return static_cast<int>(threadIdx.x); }
CNNFAST_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }

template <class T>
CNNFAST_DEVICE bool by_channel(const View<T>& image) {
  return image.stride.c == 1 && image.stride.w != 1;
}

// The numbers [0, outer * middles * inners) as (outer, middle, inner), for a thread that takes every
// block_threads()-th: it divides once.
class Walk {
 public:
  CNNFAST_DEVICE Walk(int middles, int inners) : middles_(middles), inners_(inners) {
    const int step = block_threads();
    inner = thread_rank() % inners, middle = thread_rank() / inners % middles, outer = thread_rank() / inners / middles;
    inner_step_ = step % inners, middle_step_ = step / inners % middles, outer_step_ = step / inners / middles;
  }
  CNNFAST_DEVICE void next() {
    inner += inner_step_;
    middle += middle_step_;
    outer += outer_step_;
    if (inner >= inners_) inner -= inners_, ++middle;
    if (middle >= middles_) middle -= middles_, ++outer;
  }

  int outer, middle, inner;

 private:
  int middles_, inners_, outer_step_, middle_step_, inner_step_;
};

// A band of an image in shared memory: rows from `top`, columns from `left` of the image, zero outside of [H, W].
struct Band {
  int C, H, W, top, left, rows, pitch, plane;

  CNNFAST_DEVICE Band(int64_t C, int64_t H, int64_t W, int64_t top, int64_t left, const Tile& tile)
      : C(static_cast<int>(C)),
        H(static_cast<int>(H)),
        W(static_cast<int>(W)),
        top(static_cast<int>(top)),
        left(static_cast<int>(left)),
        rows(static_cast<int>(tile.rows)),
        pitch(static_cast<int>(tile.pitch)),
        plane(static_cast<int>(tile.plane)) {}

  // to[c * plane + i * pitch + j] = 0 where (top + i, left + j) is outside; by all threads of the block.
  CNNFAST_DEVICE void clear_outside(float* to) const {
    Walk at(rows, pitch);
    for (; at.outer < C; at.next()) {
      const int h = top + at.middle, w = left + at.inner;
      if (h < 0 || h >= H || w < 0 || w >= W) to[at.outer * plane + at.middle * pitch + at.inner] = 0;
    }
  }

  // The rest, from image n; read side by side, in the order of memory.
  CNNFAST_DEVICE void load_inside(const View<const float>& image, int64_t n, float* to) const {
    const int first = max(0, top), count = min(H, top + rows) - first;
    if (count <= 0) return;
    const float* const from = image.data + n * image.stride.n + first * image.stride.h;
    const auto copy = [&](int c, int row, int w) {
      if (w - left < pitch)
        to[c * plane + (first - top + row) * pitch + w - left] =
            from[c * image.stride.c + row * image.stride.h + w * image.stride.w];
    };
    if (by_channel(image)) {
      for (Walk at(W, C); at.outer < count; at.next()) copy(at.inner, at.outer, at.middle);
    } else {
      for (Walk at(count, W); at.outer < C; at.next()) copy(at.outer, at.middle, at.inner);
    }
  }
};

// Where a channel's pixel of the pooled rows [top, top + rows) of an image is staged: in the order of memory.
struct Staged {
  int channels, pixels;
  bool by_channel;

  CNNFAST_DEVICE int at(int channel, int pixel) const {
    return by_channel ? pixel * channels + channel : channel * pixels + pixel;
  }
};

// Writes them side by side. `image` is dense, as launchers allocate it.
template <class T>
CNNFAST_DEVICE void store_staged(const Staged& staged, const T* from, const View<T>& image, int64_t n, int64_t top) {
  T* const to = image.at(n, 0, top, 0);
  const bool whole = staged.by_channel || image.stride.c == staged.pixels;  // no gap between channels
  const int count = staged.channels * staged.pixels;
  if (!whole) {
    for (Walk at(1, staged.pixels); at.outer < staged.channels; at.next())
      to[at.outer * image.stride.c + at.inner] = from[at.outer * staged.pixels + at.inner];
    return;
  }
  constexpr int kWord = 16 / static_cast<int>(sizeof(T));
  struct alignas(16) Word {
    T element[kWord];
  };
  if (count % kWord == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    for (int i = thread_rank(); i < count / kWord; i += block_threads())
      reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
  } else {
    for (int i = thread_rank(); i < count; i += block_threads()) to[i] = from[i];
  }
}

}  // namespace cnnfast
