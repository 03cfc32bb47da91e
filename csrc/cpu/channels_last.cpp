// The launcher side of copies between planes and channels_last.
#include "cpu/channels_last.h"

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace cnnfast {
namespace {

// Calls copy(image, first pixel, count, offset in channels_last) for blocks of pixels whose channels fit the cache.
void for_each_block(const PlanesSize& size, const auto& copy) {
  constexpr int64_t kBlockElements = int64_t{1} << 13;
  const int64_t pixels = size.H * size.W, block = max(round_up(kBlockElements / size.C, 8), int64_t{16});
  const int64_t blocks = ceil_div(pixels, block);
  parallel_tasks(size.N * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, first = task % blocks * block;
    copy(n, first, min(block, pixels - first), (n * pixels + first) * size.C);
  });
}

}  // namespace

void copy_from_planes(const PlanesSize& size, View<const float> planes, float* channels_last) {
  for_each_block(size, [&](int64_t n, int64_t first, int64_t count, int64_t offset) {
    cpu_kernels().channels_last.from_planes(planes.at(n, 0, 0, 0) + first, planes.stride.c, size.C, count,
                                            channels_last + offset);
  });
}

void copy_to_planes(const PlanesSize& size, const float* channels_last, View<float> planes,
                    const Epilogue<float>& epilogue) {
  for_each_block(size, [&](int64_t n, int64_t first, int64_t count, int64_t offset) {
    const int64_t to = n * planes.stride.n + first;
    cpu_kernels().channels_last.to_planes(channels_last + offset, size.C, count, planes.data + to, planes.stride.c,
                                          epilogue.from(to));
  });
}

}  // namespace cnnfast
