// What the pooling kernels share: registers of a storage type's Compute<T>, and which part of a row they cover.
//
// A register runs over channels where channels are adjacent in memory (channels_last), else over output columns,
// whose inputs lie stride_w apart: 1 and 2 are loaded as registers, wider strides element by element.
#pragma once

#include "cpu/kernels/constant.h"
#include "cpu/kernels/storage.h"

namespace cnnfast::CNNFAST_ISA {

template <class T>
using ComputeVec = Vec<Compute<T>>;
template <class T>
constexpr int kComputeLanes = kLanes<Compute<T>>;
// Registers of rows too short for a whole one.
template <class T>
constexpr int kShortLanes = kComputeLanes<T> > 4 ? 4 : kComputeLanes<T>;

// Calls block(Constant<lanes>{}, i) for starts of registers that cover [begin, end), or one(i) for each i where the
// range is too short for any. The last block overlaps the one before it: both write the same values.
template <class T, class Block, class One>
CNNFAST_INLINE void for_each_block(int64_t begin, int64_t end, const Block& block, const One& one) {
  const auto cover = [&](auto lanes) CNNFAST_INLINE_LAMBDA {
    constexpr int64_t kWidth = lanes.value;
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) block(lanes, i);
    if (i < end) block(lanes, end - kWidth);
  };
  if (end - begin >= kComputeLanes<T>) return cover(Constant<kComputeLanes<T>>{});
  if (end - begin >= kShortLanes<T>) return cover(Constant<kShortLanes<T>>{});
  for (int64_t i = begin; i < end; ++i) one(i);
}

// The output columns that registers take: all of their taps lie inside the input, where adjacent ones of its columns
// are adjacent in memory and stride_w is 1 or 2.
static inline Range register_columns(const Pool2dShape& s, int64_t column_stride) {
  const int64_t last = s.W + s.pad_w - s.dilation_w * (s.S - 1) - 1;  // the largest q * stride_w that fits
  if (column_stride != 1 || s.stride_w > 2 || last < 0) return {s.Q, s.Q};
  const int64_t begin = min(ceil_div(s.pad_w, s.stride_w), s.Q);
  return {begin, max(begin, min(last / s.stride_w + 1, s.Q))};
}

// Calls whole(Constant<stride_w>{}, Constant<lanes>{}, q) for registers of output columns from q on, in `inner`, and
// one(q) for single columns, so that all Q are covered.
template <class T, class Whole, class One>
CNNFAST_INLINE void for_each_column(int64_t Q, int64_t stride_w, Range inner, const Whole& whole, const One& one) {
  for (int64_t q = 0; q < inner.begin; ++q) one(q);
  const auto blocks = [&](auto step) CNNFAST_INLINE_LAMBDA {
    for_each_block<T>(
        inner.begin, inner.end, [&](auto lanes, int64_t q) CNNFAST_INLINE_LAMBDA { whole(step, lanes, q); }, one);
  };
  if (stride_w == 1) {
    blocks(Constant<1>{});
  } else {
    blocks(Constant<2>{});
  }
  for (int64_t q = inner.end; q < Q; ++q) one(q);
}

// The windows, along one dimension and without dilation, that cover a position: [begin, end).
class CoveringWindows {
 public:
  CoveringWindows(int64_t kernel, int64_t stride, int64_t pad, int64_t outputs)
      : kernel_(kernel), stride_(stride), pad_(pad), outputs_(outputs) {}

  CNNFAST_INLINE Range at(int64_t position) const {
    const int64_t begin = divided(max<int64_t>(position + pad_ - kernel_ + stride_, 0));
    const int64_t end = min(divided(position + pad_) + 1, outputs_);
    return {min(begin, end), end};
  }
  // The same without a division, for positions in order.
  CNNFAST_INLINE Range move_to(int64_t position) {
    while (moved_.end < outputs_ && tap(position, moved_.end) >= 0) ++moved_.end;
    while (moved_.begin < moved_.end && tap(position, moved_.begin) >= kernel_) ++moved_.begin;
    return moved_;
  }
  // Which tap of a window the position is.
  CNNFAST_INLINE int64_t tap(int64_t position, int64_t window) const { return position + pad_ - window * stride_; }

 private:
  CNNFAST_INLINE int64_t divided(int64_t position) const {
    return stride_ == 1 ? position : stride_ == 2 ? position >> 1 : position / stride_;
  }

  int64_t kernel_, stride_, pad_, outputs_;
  Range moved_{0, 0};
};

// Calls part(n, c, first, last) for the rows [first, last) of each plane that rows [begin, end) of N * C *
// rows_per_plane have a share in.
template <class Part>
CNNFAST_INLINE void for_each_plane(int64_t begin, int64_t end, int64_t channels, int64_t rows_per_plane,
                                   const Part& part) {
  const int64_t plane = begin / rows_per_plane;
  int64_t n = plane / channels, c = plane % channels, first = begin % rows_per_plane;
  while (begin < end) {
    const int64_t last = min(rows_per_plane, first + end - begin);
    part(n, c, first, last);
    begin += last - first;
    first = 0;
    if (++c == channels) c = 0, ++n;
  }
}

}  // namespace cnnfast::CNNFAST_ISA
