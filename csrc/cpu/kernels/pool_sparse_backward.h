// Backward of convolution + bias + ReLU + max-pool from (pooled gradient, code) alone.
//
// The gradient of the un-pooled map is zero but for one winner per window, and there too where ReLU clipped it. Each
// live element g at output channel k and winner (p, q) meets one patch of the input (patches.h):
//   grad_weight[k][r][:] += g * input[p * stride + r][q * stride ...]     sums stay in registers over all g of one k
//   grad_input[p * stride + r][q * stride ...] += g * weight[k][r][:]     sums stay in registers over all k that share
//                                                                        (p, q), then are added to the image once
#pragma once

#include "cpu/conv2d_relu_max_pool2d.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/patches.h"
#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int64_t kMaxPoolWindow = 16;  // codes that have a mask of their own
constexpr int64_t kMaskChannels = 64;   // the bits of a mask

// The rows of the padded image's gradient that one row of windows adds to. The next row of windows begins `step` rows
// further down; rows between the two, if there are any, are zero.
struct GradRows {
  int64_t step, rows;
  int64_t first;  // where the first row of windows begins: above the image, with a pool padding

  GradRows(const Conv2dShape& conv, const Pool2dShape& pool)
      : step(pool.stride_h * conv.stride_h),
        rows(max(step, (pool.R - 1) * pool.dilation_h * conv.stride_h + conv.R)),
        first(-pool.pad_h * conv.stride_h) {}
};

static bool sparse_takes(const Conv2dShape& conv, const Pool2dShape& pool) {
  if (conv.G != 1 || conv.dilation_h != 1 || conv.dilation_w != 1 || pool.R * pool.S > kMaxPoolWindow) return false;
  // A step that leaves the map or the image, for there is but one window, may be any number.
  if (pool.stride_h > conv.P || pool.stride_w > conv.Q || pool.dilation_h > conv.P || pool.dilation_w > conv.Q ||
      conv.stride_h > conv.H + conv.pad_top + conv.pad_bottom ||
      conv.stride_w > conv.W + conv.pad_left + conv.pad_right)
    return false;
  const PatchImage image(conv);
  const GradRows under(conv, pool);
  const int64_t kMaxOffset = int64_t{1} << 30;  // offsets into the image are 32-bit
  return image.size() < kMaxOffset && under.rows * image.pitch < kMaxOffset &&
         (pool.pad_w + (pool.S - 1) * pool.dilation_w) * conv.stride_w * conv.C < kMaxOffset;
}

// Scratch of one task.
struct SparseScratch {
  float* image;
  float* grad_rows;  // the image rows under a row of windows
  float* g;          // [K][P * Q] pooled gradients of one image
  uint8_t* code;     // [K][P * Q]
  int32_t* offset;   // of one channel's live elements
  float* live_g;
  int32_t* window;     // [P * Q] offset of a window's corner in the image
  int32_t* column;     // [Q] and in its rows
  uint8_t* by_window;  // [P * Q][32 or 64] codes of one window's channels
  uint64_t* masks;     // [blocks of 64 channels][P * Q][window codes] channels whose winner has that code

  static int64_t bytes(const Conv2dShape& conv, const Pool2dShape& pool) {
    SparseScratch unused;
    return unused.assign(conv, pool, nullptr);
  }
  int64_t assign(const Conv2dShape& conv, const Pool2dShape& pool, char* base) {
    const int64_t windows = pool.P * pool.Q, image_size = PatchImage(conv).size();
    int64_t used = 0;
    const auto take = [&]<class T>(T*& pointer, int64_t count) {
      pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
      used += round_up(count * static_cast<int64_t>(sizeof(T)) + 64, 64);  // kernels load past a row's end
    };
    take(image, image_size);
    take(grad_rows, GradRows(conv, pool).rows * PatchImage(conv).pitch);
    take(g, conv.K * windows);
    take(code, conv.K * windows);
    take(live_g, windows);
    take(offset, windows + 1);
    take(window, windows);
    take(column, pool.Q);
    take(by_window, windows * kMaskChannels);
    take(masks, ceil_div(conv.K, kMaskChannels) * windows * pool.R * pool.S);
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

// Sum of `count` floats, which are followed by a register of scratch.
static float sum_floats(float* values, int64_t count) {
  store_vec(values + count, Vec<float>{});
  Vec<float> sum{};
  for (int64_t i = 0; i < count; i += kLanes<float>) sum += load_vec(values + i);
  float total = 0;
  for (int lane = 0; lane < kLanes<float>; ++lane) total += sum[lane];
  return total;
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

// The live elements of one channel: where their patches begin, and their gradients, in window order; adds the gradients
// to *sum. Returns how many. offset and live_g have a register of room past the last window.
static int64_t gather_live(const uint8_t* code, const float* g, const int32_t* window, const int32_t* code_offset,
                           int64_t windows, int64_t codes, int32_t* __restrict offset, float* __restrict live_g,
                           float* sum) {
  int64_t live = 0, i = 0;
  float total = 0;
#if defined(__AVX2__)
  if (codes <= kMaxPoolWindow) {  // looking a code up is a permutation of a register's lanes, or of two
    static_assert(kMaxPoolWindow == 16);
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(code_offset));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(code_offset + 8));
    __m256 sums = _mm256_setzero_ps();
    for (; i + 8 <= windows; i += 8) {
      const __m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(code + i)));
      __m256i from = _mm256_permutevar8x32_epi32(low, c);
      if (codes > 8)
        from =
            _mm256_blendv_epi8(from, _mm256_permutevar8x32_epi32(high, c), _mm256_cmpgt_epi32(c, _mm256_set1_epi32(7)));
      const __m256i at = _mm256_add_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(window + i)), from);
      const __m256i dead = _mm256_cmpeq_epi32(c, _mm256_set1_epi32(kClipped));
      const unsigned mask = ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(dead))) & 0xffu;
      const __m256i front = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kFrontLanes.lanes[mask])));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(offset + live), _mm256_permutevar8x32_epi32(at, front));
      const __m256 gv = _mm256_loadu_ps(g + i);
      sums += _mm256_andnot_ps(_mm256_castsi256_ps(dead), gv);
      _mm256_storeu_ps(live_g + live, _mm256_permutevar8x32_ps(gv, front));
      live += __builtin_popcount(mask);
    }
    const __m128 half = _mm256_castps256_ps128(sums) + _mm256_extractf128_ps(sums, 1);
    const __m128 pair = half + _mm_movehl_ps(half, half);
    total = pair[0] + pair[1];
  }
#endif
  (void)codes;
  const int64_t first = live;
  for (; i < windows; ++i) {  // appends without a branch: a dead element is overwritten
    offset[live] = window[i] + code_offset[code[i]];
    live_g[live] = g[i];
    live += code[i] != kClipped;
  }
  *sum += total + sum_floats(live_g + first, live - first);
  return live;
}

// masks[window][code]: the channels, of at most 64, whose winner has that code. `by_window` is scratch.
static void channels_by_winner(const uint8_t* code, int64_t channels, int64_t windows, int64_t codes,
                               uint8_t* __restrict by_window, uint64_t* __restrict masks) {
  const auto fill = [&](auto width) CNNFAST_INLINE_LAMBDA {
    constexpr int kWidth = width.value;
    std::memset(by_window, kClipped, static_cast<size_t>(windows * kWidth));
    transpose(code, windows, channels, windows, by_window, kWidth);
    for (int64_t i = 0; i < windows; ++i)
      for (int64_t c = 0; c < codes; ++c)
        *masks++ = equal_bytes<kWidth>(by_window + i * kWidth, static_cast<uint8_t>(c));
  };
  if (channels <= 32) {
    fill(Constant<32>{});
  } else {
    fill(Constant<kMaskChannels>{});
  }
}

// Whether every winner of one image lies in the un-pooled map: its patch then lies in the packed image. A code is data
// from outside, and the kernels follow it without bounds.
static bool winners_inside(const uint8_t* code, const Conv2dShape& conv, const Pool2dShape& pool) {
  const int64_t windows = pool.P * pool.Q, codes = pool.R * pool.S;
  uint8_t most = 0;  // kClipped + 1 is 0
  for (int64_t i = 0; i < pool.C * windows; ++i) most = max(most, static_cast<uint8_t>(code[i] + 1));
  if (most > codes) return false;
  bool outside = false;
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

// What the images of one slice of the batch share.
class SparseSlice {
 public:
  SparseSlice(const PoolSparseBackward& job, char* workspace)
      : job_(job),
        image_(job.conv),
        windows_(job.pool.P * job.pool.Q),
        codes_(job.pool.R * job.pool.S),
        row_(sparse_row(job.conv)) {
    const Conv2dShape& conv = job.conv;
    const Pool2dShape& pool = job.pool;
    scratch_.assign(conv, pool, workspace);
    for (int64_t i = 0; i < codes_; ++i)
      code_offset_[i] = static_cast<int32_t>((i / pool.S) * pool.dilation_h * conv.stride_h * image_.pitch +
                                             (i % pool.S) * pool.dilation_w * conv.stride_w * conv.C);
    for (int64_t j = 0; j < pool.Q; ++j)
      scratch_.column[j] = static_cast<int32_t>((j * pool.stride_w - pool.pad_w) * conv.stride_w * conv.C);
    for (int64_t i = 0, at = 0; i < pool.P; ++i)
      for (int64_t j = 0; j < pool.Q; ++j, ++at)
        scratch_.window[at] =
            static_cast<int32_t>((i * pool.stride_h - pool.pad_h) * conv.stride_h * image_.pitch) + scratch_.column[j];
    const int64_t lanes = narrow_rows(conv) ? row_ : kLanes<float>;
    for (int64_t lane = 0; lane < lanes; ++lane) tail_[lane] = row_ - lanes + lane < conv.S * conv.C ? -1 : 0;
  }

  const float* grad_output(int64_t n) { return gather_pooled(job_.grad_output, n, job_.pool, scratch_.g); }
  const uint8_t* code(int64_t n) { return gather_pooled(job_.code, n, job_.pool, scratch_.code); }

  // Adds images [begin, end) to grad_weight and grad_bias.
  void sum_weight(int64_t begin, int64_t end, float* grad_weight, float* grad_bias) {
    const Conv2dShape& conv = job_.conv;
    std::memset(scratch_.image, 0, static_cast<size_t>(image_.size()) * sizeof(float));
    for (int64_t n = begin; n < end; ++n) {
      pack_image(conv, image_, job_.input, n, scratch_.image);
      const float* g = grad_output(n);
      const uint8_t* q = code(n);
      for (int64_t k = 0; k < conv.K; ++k, g += windows_, q += windows_) {
        const int64_t live = gather_live(q, g, scratch_.window, code_offset_, windows_, codes_, scratch_.offset,
                                         scratch_.live_g, grad_bias + k);
        float* sums = grad_weight + k * conv.R * row_;
        for_each_piece(conv, [&](const PatchKernels& kernels, int64_t r, int64_t first, bool) {
          kernels.sum(scratch_.image + r * image_.pitch + first, image_.pitch, scratch_.offset, scratch_.live_g, live,
                      sums + r * row_ + first, row_);
        });
      }
    }
  }

  // Each row of windows adds to a few rows of the padded image, so that these, the weights of few channels and the
  // codes fit the first-level cache together; a row that no further window reaches is written out.
  void write_grad_input(int64_t n) {
    const Conv2dShape& conv = job_.conv;
    const Pool2dShape& pool = job_.pool;
    const float* g = grad_output(n);
    const uint8_t* q = code(n);
    const int64_t block_masks = windows_ * codes_;
    for (int64_t begin = 0; begin < conv.K; begin += kMaskChannels)
      channels_by_winner(q + begin * windows_, min(conv.K - begin, kMaskChannels), windows_, codes_, scratch_.by_window,
                         scratch_.masks + begin / kMaskChannels * block_masks);

    prefetch_for_writing(job_.grad_input, n, conv.C, 0, conv.H, conv.W);
    const GradRows under(conv, pool);
    const int64_t kept = under.rows - under.step, moved = under.step * image_.pitch;
    const auto clear = [&](int64_t row) {
      std::memset(scratch_.grad_rows + row * image_.pitch, 0,
                  static_cast<size_t>((under.rows - row) * image_.pitch) * sizeof(float));
    };
    clear(0);
    int64_t h = 0, top = under.first - conv.pad_top;  // the next row to write; the row of the input that is first here
    for (int64_t i = 0; i < pool.P; ++i, top += under.step) {
      for (int64_t begin = 0; begin < conv.K; begin += kMaskChannels) {
        for_each_piece(conv, [&](const PatchKernels& kernels, int64_t r, int64_t first, bool last) {
          kernels.add({scratch_.grad_rows + r * image_.pitch + first, image_.pitch,
                       scratch_.masks + begin / kMaskChannels * block_masks + i * pool.Q * codes_, scratch_.column,
                       code_offset_, pool.Q, codes_, g + begin * windows_ + i * pool.Q, windows_,
                       job_.packed_weight + begin * conv.R * row_ + r * row_ + first, conv.R * row_, row_,
                       last ? tail_ : nullptr});
        });
      }
      const int64_t end = min(conv.H, top + (i + 1 < pool.P ? under.step : under.rows));
      if (h < end) {
        unpack_rows(conv, image_, scratch_.grad_rows + (h - top) * image_.pitch, job_.grad_input, n, h, end);
        h = end;
      }
      std::memmove(scratch_.grad_rows, scratch_.grad_rows + moved,
                   static_cast<size_t>(kept * image_.pitch) * sizeof(float));
      clear(kept);
    }
    for (; h < conv.H; ++h)  // no window reached it
      for (int64_t c = 0; c < conv.C; ++c)
        for (int64_t w = 0; w < conv.W; ++w) *job_.grad_input.at(n, c, h, w) = 0;
  }

 private:
  const PoolSparseBackward& job_;
  const PatchImage image_;
  const int64_t windows_, codes_, row_;
  SparseScratch scratch_;
  int32_t code_offset_[256] =
      {};             // of a winner from its window's corner in the packed image; kClipped's is not followed
  int32_t tail_[16];  // of the last register of a row, the lanes that belong to the patch
};

static bool pool_sparse_backward(const PoolSparseBackward& job, int64_t begin, int64_t end, float* grad_weight,
                                 float* grad_bias, char* workspace) {
  SparseSlice slice(job, workspace);
  for (int64_t n = begin; n < end; ++n)
    if (!winners_inside(slice.code(n), job.conv, job.pool)) return false;
  if (job.want_grad_weight) slice.sum_weight(begin, end, grad_weight, grad_bias);
  if (job.grad_input.data != nullptr)
    for (int64_t n = begin; n < end; ++n) slice.write_grad_input(n);
  return true;
}

}  // namespace cnnfast::CNNFAST_ISA
