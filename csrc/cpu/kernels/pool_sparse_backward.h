// Backward of convolution + bias + ReLU + max-pool from (pooled gradient, code) alone.
//
// The gradient of the un-pooled map is zero but for one winner per window, and there too where ReLU clipped it. Each
// live element g at output channel k and winner (p, q) meets one R x S x C patch of the input, which lies in R
// contiguous rows of S * C floats once the image is stored channels-last and padded:
//   grad_weight[k][r][:] += g * input[p * stride + r][q * stride ...]     sums stay in registers over all g of one k
//   grad_input[p * stride + r][q * stride ...] += g * weight[k][r][:]     sums stay in registers over all k that share
//                                                                        (p, q), then are added to the image once
// A row is kRow = round_up(S * C, lanes) floats in the packed weight and in grad_weight's partial sums. Lanes past S *
// C read the neighbouring pixel: in grad_weight they are dropped, in grad_input they are masked (0 * inf is not 0).
//
// Both inner loops issue one load and one multiply-add per register and are bound by the load ports.
#pragma once

#include "cpu/conv2d_relu_max_pool2d.h"
#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Registers of a patch that are summed at once: 15 sums and one broadcast fill 16 registers.
constexpr int kMaxPatchSums = 15;
constexpr int kMaxRowChunk = 12;
constexpr int64_t kMaxPoolWindow = 16;  // codes that have a mask of their own

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

static bool sparse_takes(const Conv2dShape& conv, const Pool2dShape& pool) {
  const int64_t kMaxOffset = int64_t{1} << 30;  // offsets into the image are 32-bit
  return conv.G == 1 && conv.dilation_h == 1 && conv.dilation_w == 1 && pool.R * pool.S <= kMaxPoolWindow &&
         PatchImage(conv).size() < kMaxOffset;
}

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

static void unpack_image(const Conv2dShape& conv, const PatchImage& image, const float* from, View<float> out,
                         int64_t n) {
  const int64_t h_end = min(conv.H, image.rows - conv.pad_top), w_end = min(conv.W, image.columns - conv.pad_left);
  for (int64_t h = 0; h < conv.H; ++h) {
    const int64_t end = h < h_end ? max<int64_t>(w_end, 0) : 0;
    const float* row = from + (h + conv.pad_top) * image.pitch + conv.pad_left * conv.C;
    if (out.stride.w == 1) {
      transpose(row, conv.C, end, conv.C, out.at(n, 0, h, 0), out.stride.c);
    } else {
      for (int64_t w = 0; w < end; ++w)
        for (int64_t c = 0; c < conv.C; ++c) *out.at(n, c, h, w) = row[w * conv.C + c];
    }
    for (int64_t w = end; w < conv.W; ++w)
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

// grad_input patch[r][v] += sum over channels k in a mask of g[k] * weight[k][r][v], for every (window, code) with
// channels in its mask.
struct AddPatches {
  float* image;  // at the piece's first row and float
  int64_t pitch;
  const uint64_t* masks;  // [windows][codes + 1]
  const int32_t* window;
  const int32_t* code_offset;
  int64_t windows, codes;
  const float* g;       // [channel][windows]
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
  const int64_t row = job.row, pitch = job.pitch, codes = job.codes, windows = job.windows;
  const int64_t weight_stride = job.weight_stride;
  const float* const weight = job.weight;
  for (int64_t i = 0; i < windows; ++i) {
    const float* const g = job.g + i;
    for (int64_t code = 0; code < codes; ++code) {
      uint64_t mask = job.masks[i * (codes + 1) + code];
      if (mask == 0) continue;
      V sum[kRows][kVectors];
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) sum[r][v] = V{};
      int64_t k = __builtin_ctzll(mask);
      do {
        const float* w = weight + k * weight_stride;
        const V gv = g[k * windows] - V{};
        mask &= mask - 1;
        k = __builtin_ctzll(mask | uint64_t{1} << 63);  // the next channel, one ahead of its use
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r, w += row) {
          hold(w);
#pragma GCC unroll 12
          for (int v = 0; v < kVectors; ++v) sum[r][v] += gv * load_as<V>(w + v * kLane);
        }
      } while (mask != 0);
      float* patch = job.image + job.window[i] + job.code_offset[code];
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

// Scratch of one task.
struct SparseScratch {
  float* image;
  float* grad_image;
  float* g;         // [K][P * Q] pooled gradients of one image
  uint8_t* code;    // [K][P * Q]
  int32_t* offset;  // of one channel's live elements
  float* live_g;
  int32_t* window;  // [P * Q] offset of a window's corner
  uint64_t* masks;  // [P * Q][window codes + 1] channels whose winner has that code

  static int64_t bytes(const Conv2dShape& conv, const Pool2dShape& pool) {
    SparseScratch unused;
    return unused.assign(conv, pool, nullptr);
  }
  int64_t assign(const Conv2dShape& conv, const Pool2dShape& pool, char* base) {
    const int64_t windows = pool.P * pool.Q, image_size = PatchImage(conv).size();
    int64_t used = 0;
    const auto take = [&](auto*& pointer, int64_t count) {
      using T = __typeof__(*pointer + 0);
      pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
      used += round_up(count * static_cast<int64_t>(sizeof(T)) + 64, 64);  // kernels load past a row's end
    };
    take(image, image_size);
    take(grad_image, image_size);
    take(g, conv.K * windows);
    take(live_g, windows);
    take(offset, windows + 1);
    take(window, windows);
    take(masks, windows * (pool.R * pool.S + 1));
    code = base == nullptr ? nullptr : reinterpret_cast<uint8_t*>(base + used);
    used += round_up(conv.K * windows + 64, 64);
    return used;
  }
};

static int64_t sparse_workspace_bytes(const Conv2dShape& conv, const Pool2dShape& pool) {
  return SparseScratch::bytes(conv, pool);
}

// [K][P * Q] of one image, wherever it lies.
template <class T>
const T* gather_pooled(View<const T> view, int64_t n, const Pool2dShape& pool, T* scratch) {
  if (view.stride.w == 1 && view.stride.h == pool.Q && view.stride.c == pool.P * pool.Q) return view.at(n, 0, 0, 0);
  T* out = scratch;
  for (int64_t k = 0; k < pool.C; ++k)
    for (int64_t i = 0; i < pool.P; ++i) {
      const T* in = view.at(n, k, i, 0);
      for (int64_t j = 0; j < pool.Q; ++j) *out++ = in[j * view.stride.w];
    }
  return scratch;
}

#if defined(__AVX2__)
// For each set of live lanes, the lanes to move to the front, one byte each.
struct FrontLanes {
  uint64_t lanes[256];
};
constexpr FrontLanes front_lanes() {
  FrontLanes table{};
  for (int mask = 0; mask < 256; ++mask) {
    int front = 0;
    for (int lane = 0; lane < 8; ++lane)
      if ((mask >> lane & 1) != 0) table.lanes[mask] |= static_cast<uint64_t>(lane) << (8 * front++);
  }
  return table;
}
constexpr FrontLanes kFrontLanes = front_lanes();
#endif

// The live elements of one channel: where their patches begin, and their gradients, in window order. Returns how many.
// offset and live_g have a register of room past the last window.
static int64_t gather_live(const uint8_t* code, const float* g, const int32_t* window, const int32_t* code_offset,
                           int64_t windows, int64_t codes, int32_t* __restrict offset, float* __restrict live_g) {
  int64_t live = 0, i = 0;
#if defined(__AVX2__)
  if (codes <= 8) {  // code_offset fits a register, and looking a code up is a permutation of its lanes
    const __m256i table = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(code_offset));
    for (; i + 8 <= windows; i += 8) {
      const __m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(code + i)));
      const __m256i at = _mm256_add_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(window + i)),
                                          _mm256_permutevar8x32_epi32(table, c));
      const __m256i dead = _mm256_cmpeq_epi32(c, _mm256_set1_epi32(kClipped));
      const unsigned mask = ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(dead))) & 0xffu;
      const __m256i front = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kFrontLanes.lanes[mask])));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(offset + live), _mm256_permutevar8x32_epi32(at, front));
      _mm256_storeu_ps(live_g + live, _mm256_permutevar8x32_ps(_mm256_loadu_ps(g + i), front));
      live += __builtin_popcount(mask);
    }
  }
#endif
  (void)codes;
  for (; i < windows; ++i) {  // appends without a branch: a dead element is overwritten
    offset[live] = window[i] + code_offset[code[i]];
    live_g[live] = g[i];
    live += code[i] != kClipped;
  }
  return live;
}

// Whether every winner of one image lies in the un-pooled map: its patch then lies in the packed image. A code is data
// from outside, and the kernels follow it without bounds.
static bool winners_inside(const uint8_t* code, const Conv2dShape& conv, const Pool2dShape& pool) {
  const int64_t windows = pool.P * pool.Q, codes = pool.R * pool.S;
  bool outside = false;
  for (int64_t i = 0; i < pool.C * windows; ++i) outside |= (code[i] >= codes) & (code[i] != kClipped);
  if (outside) return false;
  const int64_t h_last = (pool.P - 1) * pool.stride_h + (pool.R - 1) * pool.dilation_h - pool.pad_h;
  const int64_t w_last = (pool.Q - 1) * pool.stride_w + (pool.S - 1) * pool.dilation_w - pool.pad_w;
  if (pool.pad_h == 0 && pool.pad_w == 0 && h_last < conv.P && w_last < conv.Q) return true;
  for (int64_t k = 0; k < pool.C; ++k)
    for (int64_t i = 0; i < pool.P; ++i)
      for (int64_t j = 0; j < pool.Q; ++j, ++code) {
        if (*code == kClipped) continue;
        const int64_t h = i * pool.stride_h - pool.pad_h + *code / pool.S * pool.dilation_h;
        const int64_t w = j * pool.stride_w - pool.pad_w + *code % pool.S * pool.dilation_w;
        outside |= (h < 0) | (h >= conv.P) | (w < 0) | (w >= conv.Q);
      }
  return !outside;
}

// Sum of `count` floats, which are followed by a register of scratch.
static float sum_floats(float* values, int64_t count) {
  store_vec(values + count, Vec<float>{});
  Vec<float> sum{};
  for (int64_t i = 0; i < count; i += kLanes<float>) sum += load_vec(values + i);
  float total = 0;
  for (int lane = 0; lane < kLanes<float>; ++lane) total += sum[lane];
  return total;
}

static bool pool_sparse_backward(const PoolSparseBackward& job, int64_t begin, int64_t end, float* grad_weight,
                                 float* grad_bias, char* workspace) {
  const Conv2dShape& conv = job.conv;
  const Pool2dShape& pool = job.pool;
  const PatchImage image(conv);
  const int64_t windows = pool.P * pool.Q, codes = pool.R * pool.S, row = sparse_row(conv);
  SparseScratch scratch;
  scratch.assign(conv, pool, workspace);

  // A window's corner and a code's offset from it, as offsets into the packed image; kClipped is never followed.
  int32_t code_offset[256] = {};
  for (int64_t i = 0; i < codes; ++i)
    code_offset[i] = static_cast<int32_t>((i / pool.S) * pool.dilation_h * conv.stride_h * image.pitch +
                                          (i % pool.S) * pool.dilation_w * conv.stride_w * conv.C);
  for (int64_t i = 0, at = 0; i < pool.P; ++i)
    for (int64_t j = 0; j < pool.Q; ++j, ++at)
      scratch.window[at] = static_cast<int32_t>((i * pool.stride_h - pool.pad_h) * conv.stride_h * image.pitch +
                                                (j * pool.stride_w - pool.pad_w) * conv.stride_w * conv.C);
  // Of the last register of a row, the lanes that belong to the patch.
  int32_t tail[16];
  const int64_t row_lanes = narrow_rows(conv) ? row : kLanes<float>;
  for (int64_t lane = 0; lane < row_lanes; ++lane) tail[lane] = row - row_lanes + lane < conv.S * conv.C ? -1 : 0;

  if (job.want_grad_weight) std::memset(scratch.image, 0, static_cast<size_t>(image.size()) * sizeof(float));
  for (int64_t n = begin; n < end; ++n) {
    const float* g = gather_pooled(job.grad_output, n, pool, scratch.g);
    const uint8_t* code = gather_pooled(job.code, n, pool, scratch.code);
    if (!winners_inside(code, conv, pool)) return false;

    if (job.want_grad_weight) {
      pack_image(conv, image, job.input, n, scratch.image);
      for (int64_t k = 0; k < conv.K; ++k) {
        const float* gk = g + k * windows;
        const uint8_t* ck = code + k * windows;
        const int64_t live =
            gather_live(ck, gk, scratch.window, code_offset, windows, codes, scratch.offset, scratch.live_g);
        grad_bias[k] += sum_floats(scratch.live_g, live);
        float* sums = grad_weight + k * conv.R * row;
        for_each_piece(conv, [&](const PatchKernels& kernels, int64_t r, int64_t first, bool) {
          kernels.sum(scratch.image + r * image.pitch + first, image.pitch, scratch.offset, scratch.live_g, live,
                      sums + r * row + first, row);
        });
      }
    }

    if (job.grad_input.data != nullptr) {
      std::memset(scratch.grad_image, 0, static_cast<size_t>(image.size()) * sizeof(float));
      for (int64_t k0 = 0; k0 < conv.K; k0 += 64) {
        const int64_t k_end = min<int64_t>(conv.K, k0 + 64);
        std::memset(scratch.masks, 0, static_cast<size_t>(windows * (codes + 1)) * sizeof(uint64_t));
        for (int64_t k = k0; k < k_end; ++k) {
          const uint8_t* ck = code + k * windows;
          const uint64_t bit = uint64_t{1} << (k - k0);
          for (int64_t i = 0; i < windows; ++i) scratch.masks[i * (codes + 1) + min<int64_t>(ck[i], codes)] |= bit;
        }
        for_each_piece(conv, [&](const PatchKernels& kernels, int64_t r, int64_t first, bool last) {
          kernels.add({scratch.grad_image + r * image.pitch + first, image.pitch, scratch.masks, scratch.window,
                       code_offset, windows, codes, g + k0 * windows,
                       job.packed_weight + k0 * conv.R * row + r * row + first, conv.R * row, row,
                       last ? tail : nullptr});
        });
      }
      unpack_image(conv, image, scratch.grad_image, job.grad_input, n);
    }
  }
  return true;
}

}  // namespace cnnfast::CNNFAST_ISA
