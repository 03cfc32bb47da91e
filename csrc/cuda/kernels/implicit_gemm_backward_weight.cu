// The weight gradient by `implicit_gemm`, on the ordinary arithmetic units.
//
//   grad_weight[k, (c, tap)] = sum over pixels of grad_output[k, pixel] * input[c, pixel + tap]
//
// A block computes kFilters output channels times kColumns columns (c, tap) over one slice of the pixels, numbered
// through (n, p, q). Per step it needs kDepth pixels of both operands. Slices are added in their order by the caller.
#include "cuda/implicit_gemm.h"
#include "cuda/kernels/gemm_tile.h"

namespace cnnfast {
namespace {

constexpr int kFilters = kPlainFilters, kColumns = kPlainColumns, kDepth = 8, kSide = 16;
static_assert(kSide * kSide == kThreads);
constexpr int kTileFilters = kFilters / kSide, kTileColumns = kColumns / kSide;
constexpr int kFilterLoads = kFilters * kDepth / kThreads, kColumnLoads = kColumns * kDepth / kThreads;
// From one pixel's row in shared memory to the next: neighbouring threads may take neighbouring pixels.
constexpr int kFilterPitch = kFilters + 4, kColumnPitch = kColumns + 4;

// A pixel of grad_output, advanced by kDepth at a time without dividing.
struct Pixel {
  int64_t n;
  int p, q;

  CNNFAST_DEVICE void advance(int P, int Q) {
    for (q += kDepth; q >= Q; q -= Q)
      if (++p == P) p = 0, ++n;
  }
};

// kNeighbours: whether neighbouring threads take neighbouring pixels of one channel or, in channels_last, neighbouring
// channels of one pixel.
template <class T, bool kNeighbours>
__global__ void __launch_bounds__(kThreads, 1)
    gemm(Conv2dShape s, View<const T> input, View<const T> grad_output, Compute<T>* partial, int64_t tiles_k,
         int64_t tiles_c, int64_t slices) {
  using A = Compute<T>;
  constexpr int kPixelsOfThread = kNeighbours ? 1 : kColumnLoads, kColumnsOfThread = kNeighbours ? kColumnLoads : 1;
  CNNFAST_SHARED(A, filters, 2 * kDepth * kFilterPitch);
  CNNFAST_SHARED(A, columns, 2 * kDepth * kColumnPitch);
  const int rank = static_cast<int>(threadIdx.x), column = rank % kSide, row = rank / kSide;
  const Divided tile_k = divide(blockIdx.x, tiles_k), tile_c = divide(tile_k.quotient, tiles_c);
  const Divided group = divide(tile_c.quotient, s.G);
  const int64_t g = group.remainder, slice = group.quotient, K = s.K / s.G, C = s.C / s.G, taps = s.R * s.S;
  const int64_t k0 = tile_k.remainder * kFilters, column0 = tile_c.remainder * kColumns, all = C * taps;
  const int64_t pixels = s.N * s.P * s.Q, begin = pixels * slice / slices, end = pixels * (slice + 1) / slices;
  const int64_t steps = ceil_div(end - begin, int64_t{kDepth});
  const int P = static_cast<int>(s.P), Q = static_cast<int>(s.Q);

  // Which pixel of a step, output channel and column this thread's loads are.
  const auto filter_depth = [&](int i) {
    return kNeighbours ? rank % kDepth : rank / kFilters + i * (kThreads / kFilters);
  };
  const auto filter_of = [&](int i) { return kNeighbours ? rank / kDepth + i * (kThreads / kDepth) : rank % kFilters; };
  const auto column_depth = [&](int i) {
    return kNeighbours ? rank % kDepth : rank / kColumns + i * (kThreads / kColumns);
  };
  const auto column_of = [&](int i) { return kNeighbours ? rank / kDepth + i * (kThreads / kDepth) : rank % kColumns; };
  const auto pixel_at = [&](int depth) {
    const ImageIndex at = image_index(begin + depth, 1, max<int64_t>(s.P, 1), max<int64_t>(s.Q, 1), false);
    return Pixel{at.n, static_cast<int>(at.h), static_cast<int>(at.w)};
  };

  // The columns' places: channel c and tap, of which neighbours in `column` have neighbouring c.
  int64_t from[kColumnsOfThread];
  int down[kColumnsOfThread], right[kColumnsOfThread];
#pragma unroll
  for (int i = 0; i < kColumnsOfThread; ++i) {
    const Divided c = divide(min(column0 + column_of(i), all - 1), C), r = divide(c.quotient, s.S);
    from[i] = (g * C + c.remainder) * input.stride.c;
    down[i] = static_cast<int>(r.quotient * s.dilation_h - s.pad_top);
    right[i] = static_cast<int>(r.remainder * s.dilation_w - s.pad_left);
  }
  Pixel filter_pixel[kNeighbours ? 1 : kFilterLoads], column_pixel[kPixelsOfThread];
#pragma unroll
  for (int i = 0; i < (kNeighbours ? 1 : kFilterLoads); ++i) filter_pixel[i] = pixel_at(filter_depth(i));
#pragma unroll
  for (int i = 0; i < kPixelsOfThread; ++i) column_pixel[i] = pixel_at(column_depth(i));

  A next_filters[kFilterLoads], next_columns[kColumnLoads];
  int64_t first = begin;  // pixel of the next step
  const auto fetch = [&] {
#pragma unroll
    for (int i = 0; i < kFilterLoads; ++i) {
      const Pixel& at = filter_pixel[kNeighbours ? 0 : i];
      const int64_t k = k0 + filter_of(i);
      next_filters[i] =
          first + filter_depth(i) < end && k < K ? load(grad_output.at(at.n, g * K + k, at.p, at.q)) : A(0);
    }
#pragma unroll
    for (int i = 0; i < kColumnLoads; ++i) {
      const Pixel& at = column_pixel[kNeighbours ? 0 : i];
      const int of = kNeighbours ? i : 0;
      const int64_t h = at.p * s.stride_h + down[of], w = at.q * s.stride_w + right[of];
      const bool inside =
          first + column_depth(i) < end && column0 + column_of(i) < all && h >= 0 && h < s.H && w >= 0 && w < s.W;
      next_columns[i] = inside ? load(input.at(at.n, 0, h, w) + from[of]) : A(0);
    }
#pragma unroll
    for (int i = 0; i < (kNeighbours ? 1 : kFilterLoads); ++i) filter_pixel[i].advance(P, Q);
#pragma unroll
    for (int i = 0; i < kPixelsOfThread; ++i) column_pixel[i].advance(P, Q);
    first += kDepth;
  };
  const auto put = [&](int buffer) {
    A* const f = filters + buffer * kDepth * kFilterPitch;
    A* const x = columns + buffer * kDepth * kColumnPitch;
#pragma unroll
    for (int i = 0; i < kFilterLoads; ++i) f[filter_depth(i) * kFilterPitch + filter_of(i)] = next_filters[i];
#pragma unroll
    for (int i = 0; i < kColumnLoads; ++i) x[column_depth(i) * kColumnPitch + column_of(i)] = next_columns[i];
  };

  A sum[kTileFilters][kTileColumns] = {};
  run_buffers(steps, fetch, put, [&](int buffer) {
    const A* const f = filters + buffer * kDepth * kFilterPitch + row;
    const A* const x = columns + buffer * kDepth * kColumnPitch + column;
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      A left[kTileFilters], right_side[kTileColumns];
#pragma unroll
      for (int i = 0; i < kTileFilters; ++i) left[i] = f[d * kFilterPitch + i * kSide];
#pragma unroll
      for (int j = 0; j < kTileColumns; ++j) right_side[j] = x[d * kColumnPitch + j * kSide];
      add_products(sum, left, right_side);
    }
  });

  // In the order of a [K, C, R, S] weight, whichever its layout.
  A* const to = partial + slice * s.K * all;
#pragma unroll
  for (int i = 0; i < kTileFilters; ++i) {
#pragma unroll
    for (int j = 0; j < kTileColumns; ++j) {
      const int64_t k = k0 + row + i * kSide, at = column0 + column + j * kSide;
      if (k >= K || at >= all) continue;
      const Divided c = divide(at, C);
      to[((g * K + k) * C + c.remainder) * taps + c.quotient] = sum[i][j];
    }
  }
}

}  // namespace

template <class T>
void implicit_gemm_backward_weight(const char* name, Cuda device, const Conv2dShape& s, const WeightGradPlan& plan,
                                   View<const T> input, View<const T> grad_output, Compute<T>* partial) {
  const int64_t blocks = plan.tiles_k * plan.tiles_c * s.G * plan.slices;
  if (blocks >= int64_t{1} << 31) fail(name, ": more than 2^31 tiles of weights, but got ", blocks);
  const auto kernel = input.stride.c == 1 && input.stride.w != 1 ? gemm<T, false> : gemm<T, true>;
  launch(name, device, kernel, blocks, kThreads, 0, s, input, grad_output, partial, plan.tiles_k, plan.tiles_c,
         plan.slices);
}

#define CNNFAST_INSTANTIATE(T)                                                                              \
  template void implicit_gemm_backward_weight(const char*, Cuda, const Conv2dShape&, const WeightGradPlan&, \
                                              View<const T>, View<const T>, Compute<T>*);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
