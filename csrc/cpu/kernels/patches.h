// The patches of a pool-sparse backward (pool_sparse_backward.h): the image they lie in, and the two inner loops.
//
// A patch, R x S x C floats of the padded channels-last image, is R contiguous rows of S * C floats. A row is padded to
// whole registers in the packed weight and in grad_weight's partial sums. Lanes past S * C read the neighbouring pixel:
// in grad_weight they are dropped, in grad_input they are masked (0 * inf is not 0).
//
// Both inner loops issue one load and one multiply-add per register and are bound by the load ports.
#pragma once

#include "cpu/conv2d_relu_max_pool2d.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

// Registers of a patch that are summed at once: 15 sums and one broadcast fill 16 registers.
constexpr int kMaxPatchSums = 15;
constexpr int kMaxRowChunk = 12;

// A register of at most 16 bytes, for rows of up to 4 floats (one input channel, 3 taps): half the work of a full one.
typedef float PatchVec __attribute__((vector_size(CNNFAST_VECTOR_BYTES < 16 ? CNNFAST_VECTOR_BYTES : 16)));

template <class V>
CNNFAST_INLINE V load_as(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
CNNFAST_INLINE void store_as(float* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

static bool narrow_rows(const Conv2dShape& conv) {
  return conv.S * conv.C <= static_cast<int64_t>(sizeof(PatchVec) / sizeof(float));
}
static int64_t sparse_row(const Conv2dShape& conv) {
  return narrow_rows(conv) ? static_cast<int64_t>(sizeof(PatchVec) / sizeof(float))
                           : round_up(conv.S * conv.C, kLanes<float>);
}

// One image as the kernels want it: padded, channels last.
struct PatchImage {
  int64_t rows, columns, pitch;

  explicit PatchImage(const Conv2dShape& conv)
      : rows((conv.P - 1) * conv.stride_h + conv.R),
        columns((conv.Q - 1) * conv.stride_w + conv.S),
        pitch(columns * conv.C) {}
  int64_t size() const { return rows * pitch; }
};

// Overwrites all but the padding, which the caller has zeroed.
static void pack_image(const Conv2dShape& conv, const PatchImage& image, View<const float> input, int64_t n,
                       float* __restrict out) {
  const int64_t h_end = min(conv.H, image.rows - conv.pad_top), w_end = min(conv.W, image.columns - conv.pad_left);
  for (int64_t h = 0; h < h_end; ++h) {
    float* row = out + (h + conv.pad_top) * image.pitch + conv.pad_left * conv.C;
    if (input.stride.w == 1) {
      transpose(input.at(n, 0, h, 0), input.stride.c, conv.C, w_end, row, conv.C);
    } else {
      for (int64_t w = 0; w < w_end; ++w)
        for (int64_t c = 0; c < conv.C; ++c) row[w * conv.C + c] = *input.at(n, c, h, w);
    }
  }
}

// Writes rows [h, end) of image n from packed rows, the first of which is row h of the input.
static void unpack_rows(const Conv2dShape& conv, const PatchImage& image, const float* from, View<float> out, int64_t n,
                        int64_t h, int64_t end) {
  const int64_t columns = max<int64_t>(0, min(conv.W, image.columns - conv.pad_left));
  for (; h < end; ++h, from += image.pitch) {
    const float* row = from + conv.pad_left * conv.C;
    if (out.stride.w == 1) {
      transpose(row, conv.C, columns, conv.C, out.at(n, 0, h, 0), out.stride.c);
    } else {
      for (int64_t w = 0; w < columns; ++w)
        for (int64_t c = 0; c < conv.C; ++c) *out.at(n, c, h, w) = row[w * conv.C + c];
    }
    for (int64_t w = columns; w < conv.W; ++w)
      for (int64_t c = 0; c < conv.C; ++c) *out.at(n, c, h, w) = 0;  // no window reached it
  }
}

// grad_weight[r][v] += sum over live elements of g * patch[r][v], for kRows x kVectors registers of one channel.
// kChains sums run side by side where there are too few registers to hide the latency of a multiply-add.
template <class V, int kRows, int kVectors, int kChains>
void sum_patches(const float* image, int64_t pitch, const int32_t* offset, const float* g, int64_t live, float* sums,
                 int64_t row) {
  constexpr int kLane = sizeof(V) / sizeof(float);
  V sum[kChains][kRows][kVectors];
#pragma GCC unroll 4
  for (int chain = 0; chain < kChains; ++chain)
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v) sum[chain][r][v] = chain == 0 ? load_as<V>(sums + r * row + v * kLane) : V{};
  // The next patch's address is loaded one element ahead: a patch's loads fill the load queue, so that an address which
  // is itself loaded would be waited for. (offset and g may be read one past the last element.)
  int64_t i = 0;
  const float* next = image + offset[0];
  for (; i + kChains <= live; i += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      const float* patch = next;
      next = image + offset[i + chain + 1];
      const V gv = g[i + chain] - V{};
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r, patch += pitch) {
        hold(patch);
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) sum[chain][r][v] += gv * load_as<V>(patch + v * kLane);
      }
    }
  }
  if constexpr (kChains > 1) {
    for (; i < live; ++i)
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
          sum[0][r][v] += (g[i] - V{}) * load_as<V>(image + offset[i] + r * pitch + v * kLane);
  }
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) {
      V total = sum[0][r][v];
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) total += sum[chain][r][v];
      store_as(sums + r * row + v * kLane, total);
    }
}

// grad_input patch[r][v] += sum over channels k in a mask of g[k] * weight[k][r][v], for every (window, code) of a row
// of windows with channels in its mask.
struct AddPatches {
  float* rows;  // the image rows under the windows, at the piece's first row and float
  int64_t pitch;
  const uint64_t* masks;  // [windows][codes]
  const int32_t* window;
  const int32_t* code_offset;
  int64_t windows, codes;
  const float* g;  // [channel][windows]
  int64_t g_stride;
  const float* weight;  // [channel][R][row], at the piece
  int64_t weight_stride, row;
  const int32_t* tail;  // keeps the lanes of a row's last register that belong to the patch; null elsewhere in a row
};

template <class V, int kRows, int kVectors>
void add_patches(const AddPatches& job) {
  constexpr int kLane = sizeof(V) / sizeof(float);
  typedef int32_t Mask __attribute__((vector_size(sizeof(V))));
  Mask keep = ~Mask{};
  if (job.tail != nullptr) std::memcpy(&keep, job.tail, sizeof keep);
  const int64_t row = job.row, pitch = job.pitch, codes = job.codes, g_stride = job.g_stride;
  const int64_t weight_stride = job.weight_stride;
  const float* const weight = job.weight;
  const uint64_t* masks = job.masks;
  for (int64_t j = 0; j < job.windows; ++j) {
    const float* const g = job.g + j;
    for (int64_t code = 0; code < codes; ++code) {
      uint64_t mask = *masks++;
      if (mask == 0) continue;
      V sum[kRows][kVectors];
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) sum[r][v] = V{};
      int64_t k = __builtin_ctzll(mask);
      do {
        const float* w = weight + k * weight_stride;
        const V gv = g[k * g_stride] - V{};
        mask &= mask - 1;
        k = __builtin_ctzll(mask | uint64_t{1} << 63);  // the next channel, one ahead of its use
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r, w += row) {
          hold(w);
#pragma GCC unroll 12
          for (int v = 0; v < kVectors; ++v) sum[r][v] += gv * load_as<V>(w + v * kLane);
        }
      } while (mask != 0);
      float* patch = job.rows + job.window[j] + job.code_offset[code];
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) {
        float* to = patch + r * pitch;
        Mask last = reinterpret_cast<Mask>(sum[r][kVectors - 1]) & keep;
        sum[r][kVectors - 1] = reinterpret_cast<V>(last);
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) store_as(to + v * kLane, load_as<V>(to + v * kLane) + sum[r][v]);
      }
    }
  }
}

using SumPatches = void (*)(const float*, int64_t, const int32_t*, const float*, int64_t, float*, int64_t);
using AddPatchesKernel = void (*)(const AddPatches&);

struct PatchKernels {
  SumPatches sum;
  AddPatchesKernel add;
};

template <int kRows, int kVectors>
constexpr PatchKernels patch_kernels() {
  return {sum_patches<Vec<float>, kRows, kVectors, (kRows * kVectors < 4 ? 2 : 1)>,
          add_patches<Vec<float>, kRows, kVectors>};
}
constexpr PatchKernels kWholePatch[] = {patch_kernels<3, 1>(), patch_kernels<3, 2>(), patch_kernels<3, 3>(),
                                        patch_kernels<3, 4>(), patch_kernels<3, 5>()};
constexpr PatchKernels kRowChunk[kMaxRowChunk] = {
    patch_kernels<1, 1>(), patch_kernels<1, 2>(),  patch_kernels<1, 3>(),  patch_kernels<1, 4>(),
    patch_kernels<1, 5>(), patch_kernels<1, 6>(),  patch_kernels<1, 7>(),  patch_kernels<1, 8>(),
    patch_kernels<1, 9>(), patch_kernels<1, 10>(), patch_kernels<1, 11>(), patch_kernels<1, 12>()};
constexpr PatchKernels kNarrowPatch = {sum_patches<PatchVec, 3, 1, 4>, add_patches<PatchVec, 3, 1>};
constexpr PatchKernels kNarrowRow = {sum_patches<PatchVec, 1, 1, 4>, add_patches<PatchVec, 1, 1>};

// Calls visit(kernels, first row, first float in the row, is the row's last) for each piece of a patch that fits the
// registers.
template <class Visit>
CNNFAST_INLINE void for_each_piece(const Conv2dShape& conv, const Visit& visit) {
  const bool narrow = narrow_rows(conv);
  const int64_t vectors = narrow ? 1 : sparse_row(conv) / kLanes<float>;
  if (conv.R == 3 && 3 * vectors <= kMaxPatchSums) {
    visit(narrow ? kNarrowPatch : kWholePatch[vectors - 1], int64_t{0}, int64_t{0}, true);
    return;
  }
  for (int64_t r = 0; r < conv.R; ++r) {
    for (int64_t v = 0; v < vectors; v += kMaxRowChunk) {
      const int64_t count = min<int64_t>(kMaxRowChunk, vectors - v);
      visit(narrow ? kNarrowRow : kRowChunk[count - 1], r, v * kLanes<float>, v + count == vectors);
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
