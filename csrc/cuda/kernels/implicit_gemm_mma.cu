// A GatherConv by `implicit_gemm` on tensor cores.
//
//   output[pixel, m] = sum over (tap, c) of source[pixel + tap, c] * weight[m, (tap, c)]
//
// A block computes kM output channels of kPixels pixels, numbered through (n, i, j). The sum runs over chunks of 16
// bytes: tap by tap, the channels of the group, padded with zeros to whole chunks in both operands. A step takes four
// chunks of every row of both, which lie in shared memory as rows of 64 bytes. Chunk k of row r is at place
// k ^ (r / 2 % 4), so that the eight rows that ldmatrix reads at a time lie in eight different groups of banks.
#include <atomic>

#include "cuda/implicit_gemm.h"
#include "cuda/kernels/mma_tile.h"
#include "cuda/plan.h"

namespace cnnfast {
namespace {

constexpr int kPixels = 128, kRowChunks = 4, kRowBytes = kRowChunks * static_cast<int>(kChunkBytes);
constexpr int kRowsAtOnce = kMmaThreads / kRowChunks;
// Output channels that are staged for storing at a time, and from one to the next (or from pixel to pixel).
constexpr int kStagedM = 32, kPixelPitch = kPixels + 4, kChannelPitch = kStagedM + 8;

template <int kM>
struct TileOf {
  static constexpr int kWarpsM = kM == 32 ? 1 : 2, kWarpsPixels = 4 / kWarpsM;
  static constexpr int kStages = kM == 128 ? 3 : 4;
  static constexpr int kStageBytes = (kPixels + kM) * kRowBytes;
  static constexpr int kPlaces = kStages * kStageBytes;  // after the stages: each pixel's place in the output
  static constexpr int kBytes = kPlaces + kPixels * 8;
  static_assert(kPlaces >= kPixels * kChannelPitch * 4 && kPlaces >= kStagedM * kPixelPitch * 4);
};

CNNFAST_DEVICE int place(int row, int chunk) { return row * kRowBytes + (chunk ^ (row / 2 % 4)) * 16; }

// packed[((g * M + m) * taps + tap) * padded + c], as mma takes it.
template <class T>
__global__ void pack(GatherConv conv, GatherWeight<const T> weight, int64_t padded, T* packed, int64_t count) {
  for_each_index(count, [&](int64_t index) {
    const Divided c = divide(index, padded), tap = divide(c.quotient, conv.taps()), m = divide(tap.quotient, conv.M);
    const Divided r = divide(tap.remainder, conv.w.taps);
    T value{};
    if (c.remainder < conv.C)
      value = weight.data[m.quotient * weight.group + m.remainder * weight.m + c.remainder * weight.c +
                          (conv.h.first_tap + r.quotient * conv.h.tap_stride) * weight.r +
                          (conv.w.first_tap + r.remainder * conv.w.tap_stride) * weight.s];
#if CNNFAST_TENSOR_CORES
    if constexpr (sizeof(T) == 4) value = bits_float(to_tf32(float_bits(value)));
#endif
    packed[index] = value;
  });
}

// This thread's copies: chunk `rank % kRowChunks` of each step's four, of every kRowsAtOnce-th pixel and channel.
template <class T, int kM>
class Loader {
 public:
  CNNFAST_DEVICE Loader(const GatherConv& conv, const Chunks<T>& source, const T* packed, int64_t g, int64_t m0,
                        int64_t first_pixel)
      : conv_(conv),
        source_(source),
        row_(static_cast<int>(threadIdx.x) / kRowChunks),
        column_(static_cast<int>(threadIdx.x) % kRowChunks),
        chunks_(static_cast<int>(source.group) / kChunkSize<T>),
        chunk_(column_),
        depth_(static_cast<int>(conv.taps()) * chunks_),
        weights_(packed + (g * conv.M + m0 + row_) * depth_ * kChunkSize<T>),
        channels_(static_cast<int>(min<int64_t>(conv.M - m0, kM)) - row_) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int64_t pixel = first_pixel + row_ + i * kRowsAtOnce;
      const ImageIndex at = image_index(min(pixel, conv.pixels() - 1), 1, conv.h.outputs, conv.w.outputs, false);
      image_[i] = source.data + at.n * source.n + g * source.group;
      // Beyond the last pixel nothing is inside the image.
      h_[i] = pixel < conv.pixels() ? static_cast<int>(at.h * conv.h.step + conv.h.origin) : kOutside;
      w_[i] = static_cast<int>(at.w * conv.w.step + conv.w.origin);
    }
    find_tap();
  }

  // Issues the copies of the next step; steps are taken in their order.
  CNNFAST_DEVICE void fetch(unsigned char* stage) {
    const int down = tap_h_ * static_cast<int>(conv_.h.spread), right = tap_w_ * static_cast<int>(conv_.w.spread);
    const bool exists = tap_h_ < static_cast<int>(conv_.h.taps);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int h = h_[i] + down, w = w_[i] + right;
      const bool inside =
          exists && h >= 0 && h < static_cast<int>(conv_.h.size) && w >= 0 && w < static_cast<int>(conv_.w.size);
      const T* from = source_.data;
      if (inside)
        from = image_[i] + (h * static_cast<int>(source_.h) + w * static_cast<int>(source_.w) + chunk_ * kChunkSize<T>);
      copy_async(stage + place(row_ + i * kRowsAtOnce, column_), from, inside);
    }
    unsigned char* const weights = stage + kPixels * kRowBytes;
#pragma unroll
    for (int i = 0; i < kM / kRowsAtOnce; ++i) {
      const bool present = position_ < depth_ && i * kRowsAtOnce < channels_;
      const T* from = weights_ + (int64_t{i} * kRowsAtOnce * depth_ + position_) * kChunkSize<T>;
      copy_async(weights + place(row_ + i * kRowsAtOnce, column_), present ? from : source_.data, present);
    }
    position_ += kRowChunks;
    chunk_ += kRowChunks;
    find_tap();
  }

 private:
  static constexpr int kCopies = kPixels / kRowsAtOnce, kOutside = -(1 << 30);

  CNNFAST_DEVICE void find_tap() {
    for (; chunk_ >= chunks_; chunk_ -= chunks_)
      if (++tap_w_ == static_cast<int>(conv_.w.taps)) tap_w_ = 0, ++tap_h_;
  }

  const GatherConv& conv_;
  const Chunks<T>& source_;
  const int row_, column_;
  const int chunks_;                   // of a tap
  int chunk_, tap_h_ = 0, tap_w_ = 0;  // of the next step
  const int depth_;                    // chunks in all
  int position_ = column_;             // of the next step among them
  const T* const weights_;
  const int channels_;  // rows of weights from this thread's first on
  const T* image_[kCopies];
  int h_[kCopies], w_[kCopies];
};

template <class T, int kM>
__global__ void __launch_bounds__(kMmaThreads)
    gemm_mma(GatherConv conv, Chunks<T> source, const T* packed, const T* bias, bool relu, View<T> output,
             int64_t tiles_m, int64_t steps) {
#if CNNFAST_TENSOR_CORES
  using Tile = TileOf<kM>;
  constexpr int kWarpM = kM / Tile::kWarpsM, kWarpPixels = kPixels / Tile::kWarpsPixels;
  CNNFAST_DYNAMIC_SHARED(unsigned char, shared);
  int64_t* const places = reinterpret_cast<int64_t*>(shared + Tile::kPlaces);  // negative beyond the last pixel
  const int rank = static_cast<int>(threadIdx.x), lane = rank % kWarp, warp = rank / kWarp;
  const int warp_m = warp % Tile::kWarpsM * kWarpM, warp_pixel = warp / Tile::kWarpsM * kWarpPixels;
  // Blocks that read the same pixels follow each other.
  const Divided tile = divide(blockIdx.x, tiles_m), group = divide(tile.quotient, conv.G);
  const int64_t m0 = tile.remainder * kM, g = group.remainder, first_pixel = group.quotient * kPixels;
  for (int i = rank; i < kPixels; i += kMmaThreads) {
    const int64_t pixel = first_pixel + i;
    const ImageIndex at = image_index(min(pixel, conv.pixels() - 1), 1, conv.h.outputs, conv.w.outputs, false);
    const Strides& s = output.stride;
    places[i] = pixel < conv.pixels() ? at.n * s.n + at.h * s.h + at.w * s.w : -1;
  }

  Loader<T, kM> loader(conv, source, packed, g, m0, first_pixel);
  WarpSums<T, kWarpPixels, kWarpM> tile_sums;
  run_stages<Tile::kStages>(
      steps, [&](int64_t, int stage) { loader.fetch(shared + stage * Tile::kStageBytes); },
      [&](int stage) {
        const unsigned char* const pixels = shared + stage * Tile::kStageBytes;
        const unsigned char* const weights = pixels + kPixels * kRowBytes;
#pragma unroll 1  // registers are for sums
        for (int half = 0; half < kRowChunks / 2; ++half) {
          uint32_t a[kWarpPixels / 16][4];
#pragma unroll
          for (int i = 0; i < kWarpPixels / 16; ++i) {
            load_matrices(a[i], pixels + place(warp_pixel + 16 * i + lane % 16, 2 * half + lane / 16));
            round_fragment<T>(a[i]);
          }
#pragma unroll
          for (int pair = 0; pair < kWarpM / 16; ++pair) {
            uint32_t b[4];
            load_matrices(b, weights + place(warp_m + 16 * pair + lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2));
            tile_sums.multiply_pair(a, pair, b);
          }
        }
      });
  wait_for_copies<0>();

  // Through shared memory, so that neighbouring threads write side by side: pixels, or channels where those are
  // neighbours in memory.
  float* const staged = reinterpret_cast<float*>(shared);
  const bool channels_inner = output.stride.c == 1 && output.stride.w != 1;
  const int pixel_pitch = channels_inner ? kChannelPitch : 1, m_pitch = channels_inner ? 1 : kPixelPitch;
#pragma unroll 1
  for (int part = 0; part < kM; part += kStagedM) {
    __syncthreads();
    tile_sums.for_each([&](int pixel, int m, float sum) {
      const int row = warp_m + m - part;
      if (row >= 0 && row < kStagedM) staged[(warp_pixel + pixel) * pixel_pitch + row * m_pitch] = sum;
    });
    __syncthreads();
    for (int at = rank; at < kStagedM * kPixels; at += kMmaThreads) {
      const int row = channels_inner ? at % kStagedM : at / kPixels,
                pixel = channels_inner ? at / kStagedM : at % kPixels;
      const int64_t m = m0 + part + row, channel = g * conv.M + m;
      if (m >= conv.M || places[pixel] < 0) continue;
      const float value = staged[pixel * pixel_pitch + row * m_pitch] + (bias != nullptr ? load(bias + channel) : 0.0f);
      // A NaN stays one.
      store(output.data + places[pixel] + channel * output.stride.c, relu && value < 0 ? 0.0f : value);
    }
  }
#endif
}

template <class T, int kM>
void run(const char* name, Cuda device, const GatherConv& conv, const Chunks<T>& source, const T* packed, const T* bias,
         bool relu, View<T> output) {
  const int64_t tiles_m = ceil_div(conv.M, int64_t{kM});
  const int64_t blocks = tiles_m * conv.G * ceil_div(conv.pixels(), int64_t{kPixels});
  if (blocks >= int64_t{1} << 31) fail(name, ": more than 2^31 tiles of ", kPixels, " pixels, but got ", blocks);
  const int64_t steps = ceil_div(conv.taps() * source.group, int64_t{kRowChunks * kChunkSize<T>});
  launch(name, device, gemm_mma<T, kM>, blocks, kMmaThreads, TileOf<kM>::kBytes, conv, source, packed, bias, relu,
         output, tiles_m, steps);
}

}  // namespace

bool has_tensor_cores() {
#ifdef CNNFAST_CUDA_EMULATION
  return emulation::has_tensor_cores;
#else
  // Of each device, asked once: 0 not yet, 1 no, 2 yes. PTX of an earlier architecture leaves the kernels empty.
  constexpr int kMostDevices = 64, kFirst = 80;
  static std::atomic<char> known[kMostDevices];
  int device = 0;
  check_cuda(cudaGetDevice(&device), "has_tensor_cores");
  std::atomic<char>* const entry = device < kMostDevices ? known + device : nullptr;
  if (entry != nullptr && entry->load() != 0) return entry->load() == 2;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(gemm_mma<float16, 32>)),
             "has_tensor_cores");
  const bool has = attributes.ptxVersion >= kFirst;
  if (entry != nullptr) entry->store(has ? 2 : 1);
  return has;
#endif
}

template <class T>
void implicit_gemm_mma(const char* name, Cuda device, const GatherConv& conv, const Chunks<T>& source,
                       GatherWeight<const T> weight, const T* bias, bool relu, View<T> output) {
  const int64_t count = conv.G * conv.M * conv.taps() * source.group;
  T* packed = device.scratch<T>(count);
  launch_over(name, device, pack<T>, count, conv, weight, source.group, packed, count);
  const int64_t m = mma_tile_channels(conv);
  const auto tile = m == 32 ? run<T, 32> : m == 64 ? run<T, 64> : run<T, 128>;
  tile(name, device, conv, source, packed, bias, relu, output);
}

#define CNNFAST_INSTANTIATE(T)                                                                                   \
  template void implicit_gemm_mma(const char*, Cuda, const GatherConv&, const Chunks<T>&, GatherWeight<const T>, \
                                  const T*, bool, View<T>);
CNNFAST_FOR_EACH_TENSOR_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
