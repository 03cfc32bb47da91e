// A GatherConv by `implicit_gemm`, on the ordinary arithmetic units (IEEE float32 and float64; 16-bit types with
// float32 sums).
//
//   output[m, pixel] = sum over (tap, c) of weight[m, (tap, c)] * source[c, pixel + tap]
//
// A block computes kM output channels of kPixels pixels, numbered through (n, i, j). Per step it needs kDepth channels
// of one tap: weights, which lie packed as [g][tap][c][m], and source pixels, gathered with zeros outside the image.
#include "cuda/implicit_gemm.h"
#include "cuda/kernels/gemm_tile.h"

namespace cnnfast {
namespace {

constexpr int kPixels = 128, kDepth = 8, kSide = 16;  // a block is kSide x kSide threads
static_assert(kSide * kSide == kThreads && kSide <= 2 * kDepth);
constexpr int kTilePixels = kPixels / kSide, kRun = 4;  // a thread's pixels, in runs that are read at once
// From one row of pixels in shared memory to the next: neighbouring threads may take neighbouring rows.
constexpr int kPitch = kPixels + kRun;
constexpr int kSourceLoads = kPixels * kDepth / kThreads;

// packed[((g * taps + tap) * C + c) * M + m]
template <class T>
__global__ void pack(GatherConv conv, GatherWeight<const T> weight, Compute<T>* packed, int64_t count) {
  for_each_index(count, [&](int64_t index) {
    const Divided m = divide(index, conv.M), c = divide(m.quotient, conv.C), tap = divide(c.quotient, conv.taps());
    const Divided r = divide(tap.remainder, conv.w.taps);
    packed[index] = load(weight.data + tap.quotient * weight.group + m.remainder * weight.m + c.remainder * weight.c +
                         (conv.h.first_tap + r.quotient * conv.h.tap_stride) * weight.r +
                         (conv.w.first_tap + r.remainder * conv.w.tap_stride) * weight.s);
  });
}

template <class A>
struct alignas(16) Run {
  A x[kRun];
};

// What a thread gathers: of kLoads pixels, where each begins, and which of the step's channels.
template <class T, bool kChannelsLast>
class SourceLoader {
 public:
  // Neighbouring threads take what lies side by side: pixels, or channels.
  static constexpr int kLoadedPixels = kChannelsLast ? kSourceLoads : 1;

  CNNFAST_DEVICE SourceLoader(const GatherConv& conv, const View<const T>& source, int64_t g, int64_t first_pixel)
      : conv_(conv), stride_(source.stride) {
#pragma unroll
    for (int i = 0; i < kLoadedPixels; ++i) {
      const int64_t pixel = first_pixel + this->pixel(i);
      const ImageIndex at = image_index(min(pixel, conv.pixels() - 1), 1, conv.h.outputs, conv.w.outputs, false);
      // Beyond the last pixel nothing is inside the image.
      h_[i] = pixel < conv.pixels() ? static_cast<int>(at.h * conv.h.step + conv.h.origin) : kOutside;
      w_[i] = static_cast<int>(at.w * conv.w.step + conv.w.origin);
      from_[i] = source.data + at.n * stride_.n + g * conv.C * stride_.c;
    }
  }
  CNNFAST_DEVICE static int pixel(int i) {
    const int rank = static_cast<int>(threadIdx.x);
    return kChannelsLast ? rank / kDepth + i * (kThreads / kDepth) : rank % kPixels;
  }
  CNNFAST_DEVICE static int channel(int i) {
    const int rank = static_cast<int>(threadIdx.x);
    return kChannelsLast ? rank % kDepth : rank / kPixels + i * (kThreads / kPixels);
  }
  // Load i of a step: channel first_channel + channel(i) of pixel(i) at tap (r, t).
  CNNFAST_DEVICE Compute<T> operator()(int i, int r, int t, int first_channel) const {
    const int at = kChannelsLast ? i : 0;
    const int h = h_[at] + r * static_cast<int>(conv_.h.spread), w = w_[at] + t * static_cast<int>(conv_.w.spread);
    const int c = first_channel + channel(i);
    const bool inside = h >= 0 && h < static_cast<int>(conv_.h.size) && w >= 0 && w < static_cast<int>(conv_.w.size) &&
                        c < static_cast<int>(conv_.C);
    return inside ? load(from_[at] + c * stride_.c + h * stride_.h + w * stride_.w) : Compute<T>(0);
  }

 private:
  const GatherConv& conv_;
  const Strides stride_;
  static constexpr int kOutside = -(1 << 30);
  int h_[kLoadedPixels], w_[kLoadedPixels];
  const T* from_[kLoadedPixels];
};

template <class T, int kM, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 1) gemm(GatherConv conv, View<const T> source, const Compute<T>* packed,
                                                    const T* bias, bool relu, View<T> output, int64_t tiles_m) {
  using A = Compute<T>;
  constexpr int kTileM = kM / kSide, kWeightLoads = kM * kDepth / kThreads;
  CNNFAST_SHARED(A, weights, 2 * kDepth * kM);
  CNNFAST_SHARED(Run<A>, pixel_runs, 2 * kDepth * kPitch / kRun);
  A* const pixels = pixel_runs->x;
  CNNFAST_SHARED(int64_t, places, kPixels);  // of each pixel in the output; negative beyond the last

  const int rank = static_cast<int>(threadIdx.x), column = rank % kSide, row = rank / kSide;
  // Blocks that read the same pixels follow each other.
  const Divided tile = divide(blockIdx.x, tiles_m), group = divide(tile.quotient, conv.G);
  const int64_t m0 = tile.remainder * kM, g = group.remainder, first_pixel = group.quotient * kPixels;
  const int64_t steps = conv.taps() * ceil_div(conv.C, int64_t{kDepth});
  if (rank < kPixels) {
    const int64_t pixel = first_pixel + rank;
    const ImageIndex at = image_index(min(pixel, conv.pixels() - 1), 1, conv.h.outputs, conv.w.outputs, false);
    const Strides& s = output.stride;
    places[rank] = pixel < conv.pixels() ? at.n * s.n + at.h * s.h + at.w * s.w : -1;
  }

  const SourceLoader<T, kChannelsLast> load_source(conv, source, g, first_pixel);
  A next_weights[kWeightLoads], next_pixels[kSourceLoads];
  int tap_h = 0, tap_w = 0, c0 = 0;  // of the next step
  const auto fetch = [&] {
    const int64_t first = ((g * conv.taps() + tap_h * conv.w.taps + tap_w) * conv.C + c0) * conv.M + m0;
#pragma unroll
    for (int i = 0; i < kWeightLoads; ++i) {
      const int at = rank + i * kThreads;
      const bool exists = c0 + at / kM < static_cast<int>(conv.C) && at % kM < conv.M - m0;
      next_weights[i] = exists ? packed[first + at / kM * conv.M + at % kM] : A(0);
    }
#pragma unroll
    for (int i = 0; i < kSourceLoads; ++i) next_pixels[i] = load_source(i, tap_h, tap_w, c0);
    c0 += kDepth;
    if (c0 >= static_cast<int>(conv.C)) {
      c0 = 0;
      if (++tap_w == static_cast<int>(conv.w.taps)) tap_w = 0, ++tap_h;
    }
  };
  const auto put = [&](int buffer) {
    A* const w = weights + buffer * kDepth * kM;
    A* const x = pixels + buffer * kDepth * kPitch;
#pragma unroll
    for (int i = 0; i < kWeightLoads; ++i) w[rank + i * kThreads] = next_weights[i];
#pragma unroll
    for (int i = 0; i < kSourceLoads; ++i) x[load_source.channel(i) * kPitch + load_source.pixel(i)] = next_pixels[i];
  };

  A sum[kTileM][kTilePixels] = {};
  run_buffers(steps, fetch, put, [&](int buffer) {
    const A* const w = weights + buffer * kDepth * kM + row;
    const Run<A>* const x = pixel_runs + buffer * kDepth * kPitch / kRun + column;
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      A left[kTileM], right[kTilePixels];
#pragma unroll
      for (int i = 0; i < kTileM; ++i) left[i] = w[d * kM + i * kSide];
#pragma unroll
      for (int j = 0; j < kTilePixels; j += kRun) {
        const Run<A> run = x[(d * kPitch + j * kSide) / kRun];
#pragma unroll
        for (int k = 0; k < kRun; ++k) right[j + k] = run.x[k];
      }
      add_products(sum, left, right);
    }
  });

  // kSide channels at a time through shared memory, so that neighbouring threads write side by side: pixels, or
  // channels where those are neighbours in memory.
  const bool channels_inner = output.stride.c == 1 && output.stride.w != 1;
#pragma unroll
  for (int i = 0; i < kTileM; ++i) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kTilePixels; ++j)
      pixels[row * kPitch + column * kRun + j / kRun * kSide * kRun + j % kRun] = sum[i][j];
    __syncthreads();
    for (int at = rank; at < kSide * kPixels; at += kThreads) {
      const int r = channels_inner ? at % kSide : at / kPixels, pixel = channels_inner ? at / kSide : at % kPixels;
      const int64_t m = m0 + i * kSide + r, channel = g * conv.M + m;
      if (m >= conv.M || places[pixel] < 0) continue;
      const A value = pixels[r * kPitch + pixel] + (bias != nullptr ? load(bias + channel) : A(0));
      // A NaN stays one.
      store(output.data + places[pixel] + channel * output.stride.c, relu && value < 0 ? A(0) : value);
    }
  }
}

template <class T, int kM>
void run(const char* name, Cuda device, const GatherConv& conv, View<const T> source, const Compute<T>* packed,
         const T* bias, bool relu, View<T> output) {
  const int64_t tiles_m = ceil_div(conv.M, int64_t{kM}), tiles = ceil_div(conv.pixels(), int64_t{kPixels});
  const int64_t blocks = tiles_m * conv.G * tiles;
  if (blocks >= int64_t{1} << 31) fail(name, ": more than 2^31 tiles of ", kPixels, " pixels, but got ", blocks);
  const auto kernel = source.stride.c == 1 && source.stride.w != 1 ? gemm<T, kM, true> : gemm<T, kM, false>;
  launch(name, device, kernel, blocks, kThreads, 0, conv, source, packed, bias, relu, output, tiles_m);
}

}  // namespace

template <class T>
void implicit_gemm(const char* name, Cuda device, const GatherConv& conv, View<const T> source,
                   GatherWeight<const T> weight, const T* bias, bool relu, View<T> output) {
  const int64_t count = conv.G * conv.taps() * conv.C * conv.M;
  Compute<T>* packed = device.scratch<Compute<T>>(count);
  launch_over(name, device, pack<T>, count, conv, weight, packed, count);
  // The tallest tile of float64 would take every register there is.
  constexpr int kTallest = sizeof(Compute<T>) == 8 ? 64 : 128;
  const auto tile = conv.M <= 32 ? run<T, 32> : conv.M <= 64 ? run<T, 64> : run<T, kTallest>;
  tile(name, device, conv, source, packed, bias, relu, output);
}

#define CNNFAST_INSTANTIATE(T)                                                                                      \
  template void implicit_gemm(const char*, Cuda, const GatherConv&, View<const T>, GatherWeight<const T>, const T*, \
                              bool, View<T>);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
