// Filling shared memory: a band of padded rows, read in the order in which it lies in global memory.
#pragma once

#include "cuda/kernels/launch.h"
#include "cuda/plan.h"

namespace cnnfast {

// to[(c * tile.rows + i) * tile.pitch + j] = image n's channel c at (top + i, left + j), zero outside of [H, W]; by all
// threads of the block. What lies in H x W is read side by side: along w, or along c where that is the dense dimension.
template <class T>
CNNFAST_DEVICE void load_tile(View<const T> image, int64_t n, int C, int H, int W, int top, int left, const Tile& tile,
                              T* to) {
  const int rows = static_cast<int>(tile.rows), pitch = static_cast<int>(tile.pitch), count = C * rows * pitch;
  const bool by_channel = image.stride.c == 1 && image.stride.w != 1;
  const T* from = image.data + n * image.stride.n;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int plane = by_channel ? i / C : i % (rows * pitch), c = by_channel ? i % C : i / (rows * pitch);
    const int row = plane / pitch, column = plane % pitch, h = top + row, w = left + column;
    const bool inside = h >= 0 && h < H && w >= 0 && w < W;
    to[(c * rows + row) * pitch + column] =
        inside ? from[c * image.stride.c + h * image.stride.h + w * image.stride.w] : T(0);
  }
}

}  // namespace cnnfast
