// The weight gradient by `implicit_gemm` on tensor cores.
//
//   grad_weight[k, (tap, c)] = sum over pixels of grad_output[pixel, k] * input[pixel + tap, c]
//
// A block computes kFilters output channels times kColumns columns over one slice of the pixels, numbered through
// (n, p, q). Columns are taps times the group's channels, padded to whole chunks of 16 bytes, so that each chunk has
// one tap. A step takes kDepth pixels of both operands, a row of shared memory for each. mma wants pixels side by side:
// ldmatrix transposes 16-bit elements on its way; floats are read one by one. Slices are added in their order by the
// caller.
#include "cuda/implicit_gemm.h"
#include "cuda/kernels/mma_tile.h"
#include "cuda/plan.h"

namespace cnnfast {
namespace {

template <class T>
constexpr int kDepth = 2 * kMmaDepth<T>;  // pixels of a step

template <class T, int kFilters, int kColumns>
struct TileOf {
  static constexpr int kFilterBytes = kDepth<T> * kFilters * static_cast<int>(sizeof(T));
  static constexpr int kStageBytes = kFilterBytes + kDepth<T> * kColumns * static_cast<int>(sizeof(T));
  static constexpr int kStages = kFilters + kColumns > 192 ? 3 : 4;
  static constexpr int kBytes = kStages * kStageBytes;
};

// kWidth elements of each of a step's pixels. Chunks of a row trade places, so that what a warp reads at a time, eight
// chunks of eight rows or eight floats of four, lies in different banks.
template <class T, int kWidth>
struct Rows {
  static constexpr int kChunks = kWidth / kChunkSize<T>, kRowsAtOnce = kMmaThreads / kChunks;
  static constexpr int kCopies = kDepth<T> / kRowsAtOnce;

  CNNFAST_DEVICE static int place(int row, int chunk) {
    const int other = sizeof(T) == 2 ? row % 8 : row % 4 * 2;
    return (row * kChunks + (chunk ^ other)) * 16;
  }
  // This thread's copies are of one chunk of every kRowsAtOnce-th row.
  CNNFAST_DEVICE static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  CNNFAST_DEVICE static int row(int i) { return static_cast<int>(threadIdx.x) / kChunks + i * kRowsAtOnce; }

  CNNFAST_DEVICE static uint32_t element(const unsigned char* rows, int row, int column) {
    uint32_t bits;
    std::memcpy(&bits, rows + place(row, column / 4) + column % 4 * 4, 4);
    return to_tf32(bits);
  }
  // The fragment A of 16 columns from `first` on, or B of twice 8, of the pixels from `row` on.
  CNNFAST_DEVICE static void load_a(uint32_t (&r)[4], const unsigned char* rows, int row, int first) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if constexpr (sizeof(T) == 2) {
      load_transposed_matrices(r, rows + place(row + lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = element(rows, row + i / 2 * 4 + lane % 4, first + i % 2 * 8 + lane / 4);
    }
  }
  CNNFAST_DEVICE static void load_b(uint32_t (&r)[4], const unsigned char* rows, int row, int first) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if constexpr (sizeof(T) == 2) {
      load_transposed_matrices(r, rows + place(row + lane / 8 % 2 * 8 + lane % 8, first / 8 + lane / 16));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = element(rows, row + i % 2 * 4 + lane % 4, first + i / 2 * 8 + lane / 4);
    }
  }
};

// A pixel of grad_output, advanced by kDepth at a time without dividing.
struct Pixel {
  int64_t n;
  int p, q;

  CNNFAST_DEVICE void advance(const Pixel& by, int P, int Q) {
    q += by.q;
    p += by.p;
    n += by.n;
    if (q >= Q) q -= Q, ++p;
    if (p >= P) p -= P, ++n;
  }
};

template <class T, int kFilters, int kColumns>
__global__ void __launch_bounds__(kMmaThreads)
    gemm_mma_backward_weight(Conv2dShape s, Chunks<T> input, Chunks<T> grad_output, float* partial, int64_t tiles_k,
                             int64_t tiles_c, int64_t slices) {
#if CNNFAST_TENSOR_CORES
  using Tile = TileOf<T, kFilters, kColumns>;
  using FilterRows = Rows<T, kFilters>;
  using ColumnRows = Rows<T, kColumns>;
  constexpr int kWarpFilters = kFilters / 2, kWarpColumns = kColumns / 2;
  CNNFAST_DYNAMIC_SHARED(unsigned char, shared);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_filter = warp / 2 * kWarpFilters, warp_column = warp % 2 * kWarpColumns;
  const Divided tile_k = divide(blockIdx.x, tiles_k), tile_c = divide(tile_k.quotient, tiles_c);
  const Divided group = divide(tile_c.quotient, s.G);
  const int64_t g = group.remainder, slice = group.quotient, K = s.K / s.G, C = s.C / s.G;
  const int64_t k0 = tile_k.remainder * kFilters, column0 = tile_c.remainder * kColumns, all = s.R * s.S * input.group;
  const int64_t pixels = s.N * s.P * s.Q, begin = pixels * slice / slices, end = pixels * (slice + 1) / slices;
  const int64_t steps = ceil_div(end - begin, int64_t{kDepth<T>});
  const int P = static_cast<int>(s.P), Q = static_cast<int>(s.Q);

  // This thread's chunk of the filters, and its chunk of the columns: one tap's.
  const int64_t filter = k0 + FilterRows::chunk() * kChunkSize<T>,
                column = column0 + ColumnRows::chunk() * kChunkSize<T>;
  const bool has_filter = filter < grad_output.group, has_column = column < all;
  const Divided c = divide(min(column, all - 1), input.group), tap = divide(c.quotient, s.S);
  const int down = static_cast<int>(tap.quotient * s.dilation_h - s.pad_top);
  const int right = static_cast<int>(tap.remainder * s.dilation_w - s.pad_left);
  const T* const filters_from = grad_output.data + g * grad_output.group + filter;
  const T* const columns_from = input.data + g * input.group + c.remainder;
  const auto pixel_at = [&](int64_t number) {
    const ImageIndex at = image_index(number, 1, max<int64_t>(s.P, 1), max<int64_t>(s.Q, 1), false);
    return Pixel{at.n, static_cast<int>(at.h), static_cast<int>(at.w)};
  };
  const Pixel by = pixel_at(kDepth<T>);
  Pixel column_pixel[ColumnRows::kCopies];
#pragma unroll
  for (int i = 0; i < ColumnRows::kCopies; ++i) column_pixel[i] = pixel_at(begin + ColumnRows::row(i));

  const auto fetch = [&](int64_t step, int stage) {
    unsigned char* const filters = shared + stage * Tile::kStageBytes;
    unsigned char* const columns = filters + Tile::kFilterBytes;
    const int64_t first = begin + step * kDepth<T>;
#pragma unroll
    for (int i = 0; i < FilterRows::kCopies; ++i) {
      const int row = FilterRows::row(i);
      const bool present = has_filter && first + row < end;
      const T* from = filters_from + (first + row) * grad_output.w;
      copy_async(filters + FilterRows::place(row, FilterRows::chunk()), present ? from : grad_output.data, present);
    }
#pragma unroll
    for (int i = 0; i < ColumnRows::kCopies; ++i) {
      const int row = ColumnRows::row(i);
      Pixel& at = column_pixel[i];
      const int h = at.p * static_cast<int>(s.stride_h) + down, w = at.q * static_cast<int>(s.stride_w) + right;
      const bool present =
          has_column && first + row < end && h >= 0 && h < static_cast<int>(s.H) && w >= 0 && w < static_cast<int>(s.W);
      const T* from = input.data;
      if (present)
        from = columns_from + at.n * input.n + (h * static_cast<int>(input.h) + w * static_cast<int>(input.w));
      copy_async(columns + ColumnRows::place(row, ColumnRows::chunk()), from, present);
      at.advance(by, P, Q);
    }
  };
  WarpSums<T, kWarpFilters, kWarpColumns> tile_sums;
  run_stages<Tile::kStages>(steps, fetch, [&](int stage) {
    const unsigned char* const filters = shared + stage * Tile::kStageBytes;
    const unsigned char* const columns = filters + Tile::kFilterBytes;
#pragma unroll 1  // registers are for sums
    for (int row = 0; row < kDepth<T>; row += kMmaDepth<T>) {
      uint32_t a[kWarpFilters / 16][4];
#pragma unroll
      for (int i = 0; i < kWarpFilters / 16; ++i) FilterRows::load_a(a[i], filters, row, warp_filter + 16 * i);
#pragma unroll
      for (int pair = 0; pair < kWarpColumns / 16; ++pair) {
        uint32_t b[4];
        ColumnRows::load_b(b, columns, row, warp_column + 16 * pair);
        tile_sums.multiply_pair(a, pair, b);
      }
    }
  });
  wait_for_copies<0>();

  // In the order of a [K, C, R, S] weight, whichever its layout.
  float* const to = partial + slice * s.K * C * s.R * s.S;
  tile_sums.for_each([&](int row, int of_tile, float sum) {
    const int64_t k = k0 + warp_filter + row, at = column0 + warp_column + of_tile;
    const Divided channel = divide(at, input.group);
    if (k < K && at < all && channel.remainder < C)
      to[((g * K + k) * C + channel.remainder) * s.R * s.S + channel.quotient] = sum;
  });
#endif
}

template <class T, int kFilters, int kColumns>
void run(const char* name, Cuda device, const Conv2dShape& s, const WeightGradPlan& plan, const Chunks<T>& input,
         const Chunks<T>& grad_output, float* partial) {
  const int64_t blocks = plan.tiles_k * plan.tiles_c * s.G * plan.slices;
  if (blocks >= int64_t{1} << 31) fail(name, ": more than 2^31 tiles of weights, but got ", blocks);
  launch(name, device, gemm_mma_backward_weight<T, kFilters, kColumns>, blocks, kMmaThreads,
         TileOf<T, kFilters, kColumns>::kBytes, s, input, grad_output, partial, plan.tiles_k, plan.tiles_c,
         plan.slices);
}

}  // namespace

template <class T>
void implicit_gemm_mma_backward_weight(const char* name, Cuda device, const Conv2dShape& s, const WeightGradPlan& plan,
                                       const Chunks<T>& input, const Chunks<T>& grad_output, float* partial) {
  const auto tile = plan.filters == 64 ? (plan.columns == 64 ? run<T, 64, 64> : run<T, 64, 128>)
                                       : (plan.columns == 64 ? run<T, 128, 64> : run<T, 128, 128>);
  tile(name, device, s, plan, input, grad_output, partial);
}

#define CNNFAST_INSTANTIATE(T)                                                                                  \
  template void implicit_gemm_mma_backward_weight(const char*, Cuda, const Conv2dShape&, const WeightGradPlan&, \
                                                  const Chunks<T>&, const Chunks<T>&, float*);
CNNFAST_FOR_EACH_TENSOR_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
