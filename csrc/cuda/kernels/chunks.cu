// Copies an image into chunks (see cuda/chunks.h), through shared memory, so that neighbouring threads read and write
// side by side whichever layout it has.
#include "cuda/chunks.h"
#include "cuda/kernels/launch.h"

namespace cnnfast {
namespace {

constexpr int kSide = 32;  // pixels and channels of a block's tile

// to[((n * H + h) * W + w) * G * padded + g * padded + c], where a group has C channels, `padded` with zeros.
template <class T>
__global__ void __launch_bounds__(kThreads) pack(View<const T> from, T* to, int64_t G, int64_t C, int64_t padded,
                                                 int64_t H, int64_t W, int64_t pixels, int64_t channel_tiles) {
  CNNFAST_SHARED(T, tile, kSide * (kSide + 1));
  const int lane = static_cast<int>(threadIdx.x) % kSide, first = static_cast<int>(threadIdx.x) / kSide;
  const Divided at = divide(blockIdx.x, channel_tiles);
  const int64_t first_pixel = at.quotient * kSide, first_channel = at.remainder * kSide;
  const bool channels_inner = from.stride.c < from.stride.w;
  for (int i = first; i < kSide; i += kThreads / kSide) {
    const int p = channels_inner ? i : lane, k = channels_inner ? lane : i;
    const int64_t pixel = first_pixel + p, channel = first_channel + k;
    T value{};
    if (pixel < pixels && channel < G * padded) {
      const Divided group = divide(channel, padded);
      const ImageIndex image = image_index(pixel, 1, H, W, false);
      if (group.remainder < C) value = *from.at(image.n, group.quotient * C + group.remainder, image.h, image.w);
    }
    tile[p * (kSide + 1) + k] = value;
  }
  __syncthreads();
  for (int i = first; i < kSide; i += kThreads / kSide) {
    const int64_t pixel = first_pixel + i, channel = first_channel + lane;
    if (pixel < pixels && channel < G * padded) to[pixel * G * padded + channel] = tile[i * (kSide + 1) + lane];
  }
}

}  // namespace

template <class T>
Chunks<T> chunks_of(const char* name, Cuda device, View<const T> view, int64_t N, int64_t G, int64_t C, int64_t H,
                    int64_t W, bool dense) {
  const int64_t size = kChunkBytes / static_cast<int64_t>(sizeof(T)), padded = round_up(C, size);
  const Strides& s = view.stride;
  const bool aligned = reinterpret_cast<uintptr_t>(view.data) % kChunkBytes == 0 && s.n % size == 0 &&
                       s.h % size == 0 && s.w % size == 0;
  const bool in_order = s.h == W * s.w && s.n == H * s.h;
  // Kernels keep places within an image in 32 bits.
  const int64_t kMost = int64_t{1} << 31;
  if (s.c == 1 && padded == C && aligned && (in_order || !dense) && (H - 1) * s.h + (W - 1) * s.w + G * C < kMost)
    return {view.data, s.n, s.h, s.w, C};
  const int64_t pixels = N * H * W, row = G * padded, channel_tiles = ceil_div(row, int64_t{kSide});
  const int64_t blocks = ceil_div(pixels, int64_t{kSide}) * channel_tiles;
  if (blocks >= int64_t{1} << 31) fail(name, ": more than 2^31 tiles of a tensor, but got ", blocks);
  T* to = device.scratch<T>(pixels * row);
  launch(name, device, pack<T>, blocks, kThreads, 0, view, to, G, C, padded, H, W, pixels, channel_tiles);
  return {to, H * W * row, W * row, row, padded};
}

#define CNNFAST_INSTANTIATE(T) \
  template Chunks<T> chunks_of(const char*, Cuda, View<const T>, int64_t, int64_t, int64_t, int64_t, int64_t, bool);
CNNFAST_FOR_EACH_TENSOR_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
