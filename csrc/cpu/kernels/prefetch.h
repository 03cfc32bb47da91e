// Asking for memory before it is written. A store to a line that is in no cache waits for it. A new tensor's lines are
// seldom in one, and an image's results come in a burst at its end, when nothing is left to do meanwhile.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int64_t kLineBytes = 64;  // of a cache

// More than this would push out what the task works on.
constexpr int64_t kMaxPrefetchBytes = 64 << 10;

// Rows [top, top + rows) of image n in `view`, to be written a while later.
template <class T>
CNNFAST_INLINE void prefetch_for_writing(View<T> view, int64_t n, int64_t channels, int64_t top, int64_t rows,
                                         int64_t columns) {
  if (channels * rows * columns * static_cast<int64_t>(sizeof(T)) > kMaxPrefetchBytes) return;
  const bool by_plane = view.stride.w == 1;
  const int64_t runs = by_plane ? channels : 1;
  const int64_t length = (by_plane ? (rows - 1) * view.stride.h + columns : rows * columns * channels);
  for (int64_t c = 0; c < runs; ++c) {
    const char* run = reinterpret_cast<const char*>(view.at(n, c, top, 0));
    for (int64_t byte = 0; byte < length * static_cast<int64_t>(sizeof(T)); byte += kLineBytes)
      __builtin_prefetch(run + byte, 1, 3);
  }
}

}  // namespace cnnfast::CNNFAST_ISA
