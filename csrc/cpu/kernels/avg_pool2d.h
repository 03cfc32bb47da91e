// Average-pooling, forward and backward: output[n, c, p, q] = (sum over the taps (r, s) inside the input of
// input[n, c, p * stride_h - pad_h + r, q * stride_w - pad_w + s]) / divisor(p, q).
//
// Forward: a task owns rows of the output. Backward: a task owns rows of grad_input and gathers the windows that
// cover them, so that overlapping windows do not race. Registers run over channels or columns (pool2d.h). Each sum
// has one order whatever the layout and the register: forward r, s; backward the gradients of the windows in row-major
// order, divided at the end, or, where windows have several divisors (or are far apart), the quotients, the windows of
// a column first.
#pragma once

#include "cpu/avg_pool2d.h"
#include "cpu/kernels/pool2d_gather.h"
#include "cpu/kernels/transpose.h"

namespace cnnfast::CNNFAST_ISA {

// The sums of kCount registers of windows with the same taps, `apart` elements from one to the next; the windows of a
// register are kStep apart. Several registers at a time, for each sum is a chain of additions.
template <int kStep, int kCount, class V, class T>
CNNFAST_INLINE void sum_windows(Range rows, Range columns, const T* input, int64_t down, int64_t right, int64_t apart,
                                V (&sum)[kCount]) {
  unroll<kCount>([&](auto i) CNNFAST_INLINE_LAMBDA { sum[i.value] = V{}; });
  const auto add = [&](int64_t r, int64_t s) CNNFAST_INLINE_LAMBDA {
    const T* tap = input + r * down + s * right;
    unroll<kCount>([&](auto i) CNNFAST_INLINE_LAMBDA { sum[i.value] += load_lanes<kStep, V>(tap + i.value * apart); });
  };
  const int64_t r = rows.begin, s = columns.begin;
  if (rows.end - r == 2 && columns.end - s == 2) {  // the common windows, unrolled
    unroll<4>([&](auto i) CNNFAST_INLINE_LAMBDA { add(r + i.value / 2, s + i.value % 2); });
  } else if (rows.end - r == 3 && columns.end - s == 3) {
    unroll<9>([&](auto i) CNNFAST_INLINE_LAMBDA { add(r + i.value / 3, s + i.value % 3); });
  } else {
    for (int64_t i = r; i < rows.end; ++i)
      for (int64_t j = s; j < columns.end; ++j) add(i, j);
  }
}

template <class T>
CNNFAST_INLINE Compute<T> sum_window(Range rows, Range columns, const T* input, int64_t down, int64_t right) {
  Compute<T> sum = 0;
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t s = columns.begin; s < columns.end; ++s) sum += load(input + r * down + s * right);
  return sum;
}

// All channels of output row p of image n.
template <class T>
void average_channels_last_row(const AvgPool2dForward<T>& a, int64_t n, int64_t p) {
  const Pool2dShape s = a.shape;
  const Strides in = a.input.stride;
  const Divisors divisors(s, a.divisor);
  const int64_t h = p * s.stride_h - s.pad_h, row_divisor = divisors.rows(p);
  const Range rows = window_taps(h, s.R, 1, s.H);
  for (int64_t q = 0; q < s.Q; ++q) {
    const int64_t w = q * s.stride_w - s.pad_w;
    const Range columns = window_taps(w, s.S, 1, s.W);
    const Compute<T> divisor = static_cast<Compute<T>>(row_divisor * divisors.columns(q));
    const T* input = a.input.at(n, 0, h, w);
    T* output = a.output.at(n, 0, p, q);
    const auto one = [&](int64_t c) {
      store(output + c, sum_window(rows, columns, input + c * in.c, in.h, in.w) / divisor);
    };
    const auto some = [&](auto lanes, auto count, int64_t c) CNNFAST_INLINE_LAMBDA {
      Lanes<Compute<T>, lanes.value> sum[count.value];
      sum_windows<1>(rows, columns, input + c, in.h, in.w, lanes.value, sum);
      unroll<count.value>([&](auto i) CNNFAST_INLINE_LAMBDA {
        store_lanes(output + c + i.value * lanes.value, sum[i.value] / divisor);
      });
    };
    if (in.c == 1) {
      constexpr int kCount = 4, kWidth = kComputeLanes<T>;
      int64_t c = 0;
      for (; c + kCount * kWidth <= s.C; c += kCount * kWidth) some(Constant<kWidth>{}, Constant<kCount>{}, c);
      if (c > 0 && c < s.C) c = min(c, s.C - kWidth);  // what is left fills a register with what is done
      for_each_block<T>(
          c, s.C, [&](auto lanes, int64_t at) CNNFAST_INLINE_LAMBDA { some(lanes, Constant<1>{}, at); }, one);
    } else {
      for (int64_t c = 0; c < s.C; ++c) one(c);
    }
  }
}

// Output rows [first, last) of one plane.
template <class T>
void average_plane(const AvgPool2dForward<T>& a, Range inner, int64_t n, int64_t c, int64_t first, int64_t last) {
  const Pool2dShape s = a.shape;
  const Strides in = a.input.stride;
  const Divisors divisors(s, a.divisor);
  const int64_t inner_divisor = inner.begin < inner.end ? divisors.columns(inner.begin) : 1;
  for (int64_t p = first; p < last; ++p) {
    const int64_t h = p * s.stride_h - s.pad_h, row_divisor = divisors.rows(p);
    const Range rows = window_taps(h, s.R, 1, s.H);
    const T* input = a.input.at(n, c, h, -s.pad_w);
    T* output = a.output.at(n, c, p, 0);
    const auto one = [&](int64_t q) {
      const Range columns = window_taps(q * s.stride_w - s.pad_w, s.S, 1, s.W);
      const T* window = input + q * s.stride_w * in.w;
      const auto divisor = static_cast<Compute<T>>(row_divisor * divisors.columns(q));
      store(output + q, sum_window(rows, columns, window, in.h, in.w) / divisor);
    };
    // All of its windows lie inside: one divisor.
    const auto divisor = static_cast<Compute<T>>(row_divisor * inner_divisor);
    const auto whole = [&](auto step, auto lanes, int64_t q) CNNFAST_INLINE_LAMBDA {
      Lanes<Compute<T>, lanes.value> sum[1];
      sum_windows<step.value>(rows, {0, s.S}, input + q * step.value, in.h, in.w, 0, sum);
      store_lanes(output + q, sum[0] / divisor);
    };
    for_each_column<T>(s.Q, s.stride_w, inner, whole, one);
  }
}

// sum[lane] = that of the `count` elements from input + lane * plane on, in their order.
static Vec<float> sum_planes(const float* input, int64_t plane, int64_t count) {
  constexpr int kStep = 4;
  Vec<float> sum{};
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    Vec<float> column[kStep];
    load_transposed<kStep>(input + i, plane, column);
    unroll<kStep>([&](auto j) CNNFAST_INLINE_LAMBDA { sum += column[j.value]; });
  }
  for (; i < count; ++i)
    for (int lane = 0; lane < kLanes<float>; ++lane) sum[lane] += input[lane * plane + i];
  return sum;
}

// Planes [begin, end) of one window each. Several at a time, for each sum is a chain of additions.
template <class T>
void average_whole_planes(const AvgPool2dForward<T>& a, int64_t begin, int64_t end) {
  constexpr int kPlanes = 4;
  const Pool2dShape s = a.shape;
  const Strides in = a.input.stride;
  const Divisors divisors(s, a.divisor);
  const auto divisor = static_cast<Compute<T>>(divisors.rows(0) * divisors.columns(0));
  const Range rows = window_taps(-s.pad_h, s.R, 1, s.H), columns = window_taps(-s.pad_w, s.S, 1, s.W);
  int64_t plane = begin;
  if constexpr (std::is_same_v<T, float>) {
    // Windows of whole planes one after another: a register of planes at a time.
    const bool dense = in.w == 1 && in.h == s.W && in.c == s.H * s.W && a.output.stride.c == 1 &&
                       (s.N == 1 || (in.n == s.C * in.c && a.output.stride.n == s.C));
    if (dense && rows.end - rows.begin == s.H && columns.end - columns.begin == s.W) {
      for (; plane + kLanes<float> <= end; plane += kLanes<float>) {
        const Vec<float> sum = sum_planes(a.input.at(0, 0, 0, 0) + plane * in.c, in.c, in.c);
        store_vec(a.output.at(0, 0, 0, 0) + plane, sum / divisor);
      }
    }
  }
  for (; plane < end; plane += kPlanes) {
    const T* input[kPlanes];
    T* output[kPlanes];
    Compute<T> sum[kPlanes];
    unroll<kPlanes>([&](auto i) CNNFAST_INLINE_LAMBDA {
      const int64_t at = min(plane + i.value, end - 1);  // the last plane several times over
      input[i.value] = a.input.at(at / s.C, at % s.C, -s.pad_h, -s.pad_w);
      output[i.value] = a.output.at(at / s.C, at % s.C, 0, 0);
      sum[i.value] = 0;
    });
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t t = columns.begin; t < columns.end; ++t)
        unroll<kPlanes>([&](auto i)
                            CNNFAST_INLINE_LAMBDA { sum[i.value] += load(input[i.value] + r * in.h + t * in.w); });
    unroll<kPlanes>([&](auto i) CNNFAST_INLINE_LAMBDA { store(output[i.value], sum[i.value] / divisor); });
  }
}

template <class T>
void avg_pool2d_forward(const AvgPool2dForward<T>& a, int64_t begin, int64_t end) {
  const Pool2dShape& s = a.shape;
  if (a.channels_last) {
    for (int64_t row = begin; row < end; ++row) average_channels_last_row(a, row / s.P, row % s.P);
  } else if (s.P == 1 && s.Q == 1) {
    average_whole_planes(a, begin, end);
  } else {
    const Range inner = register_columns(s, a.input.stride.w);
    for_each_plane(begin, end, s.C, s.P, [&](int64_t n, int64_t c, int64_t first, int64_t last) {
      average_plane(a, inner, n, c, first, last);
    });
  }
}

// The rows of grad_input that one call computes, and what they share: divisors of rows and columns of the output.
template <class T>
class AvgPool2dGradRows {
 public:
  using C = Compute<T>;

  AvgPool2dGradRows(const AvgPool2dBackward<T>& args, C* scratch)
      : a_(args),
        s_(args.shape),
        covering_h_(s_.R, s_.stride_h, s_.pad_h, s_.P),
        covering_w_(s_.S, s_.stride_w, s_.pad_w, s_.Q),
        row_divisor_(scratch),
        column_divisor_(row_divisor_ + s_.P),
        column_(column_divisor_ + s_.Q),
        row_(column_ + s_.Q) {
    const Divisors divisors(s_, args.divisor);
    for (int64_t p = 0; p < s_.P; ++p) row_divisor_[p] = static_cast<C>(divisors.rows(p));
    for (int64_t q = 0; q < s_.Q; ++q) column_divisor_[q] = static_cast<C>(divisors.columns(q));
    const int64_t last = s_.W + s_.pad_w - s_.S;  // the largest q * stride_w all of whose taps lie inside
    inner_.begin = min(ceil_div(s_.pad_w, s_.stride_w), s_.Q);
    inner_.end = last < 0 ? inner_.begin : max(inner_.begin, min(last / s_.stride_w + 1, s_.Q));
  }

  // All channels of row h of image n.
  void channels_last_row(int64_t n, int64_t h) const {
    const Strides step = a_.grad_output.stride;
    const Range windows_h = covering_h_.at(h);
    CoveringWindows covering_w = covering_w_;
    for (int64_t w = 0; w < s_.W; ++w) {
      const Range windows_w = covering_w.move_to(w);
      const T* grad_output = a_.grad_output.at(n, 0, windows_h.begin, windows_w.begin);
      T* grad_input = a_.grad_input.at(n, 0, h, w);
      const auto one = [&](int64_t c) {
        store(grad_input + c, gather<C>(windows_h, windows_w, [&](int64_t i, int64_t j) CNNFAST_INLINE_LAMBDA {
                return load(grad_output + c * step.c + i * step.h + j * step.w);
              }));
      };
      const auto whole = [&](auto lanes, int64_t c) CNNFAST_INLINE_LAMBDA {
        using V = Lanes<C, lanes.value>;
        store_lanes(grad_input + c, gather<V>(windows_h, windows_w, [&](int64_t i, int64_t j) CNNFAST_INLINE_LAMBDA {
                      return load_lanes<1, V>(grad_output + c + i * step.h + j * step.w);
                    }));
      };
      if (step.c == 1) {
        for_each_block<T>(0, s_.C, whole, one);
      } else {
        for (int64_t c = 0; c < s_.C; ++c) one(c);
      }
    }
  }

  // Rows [first, last) of one plane. Rows that the same windows cover are equal.
  void plane(int64_t n, int64_t c, int64_t first, int64_t last) const {
    if (s_.P == 1 && s_.Q == 1 && s_.pad_h == 0 && s_.pad_w == 0 && s_.R >= s_.H && s_.S >= s_.W) {
      const C value = load(a_.grad_output.at(n, c, 0, 0)) / (row_divisor_[0] * column_divisor_[0]);
      T* grad_input = a_.grad_input.at(n, c, first, 0);
      for_each_block<T>(
          0, (last - first) * s_.W,
          [&](auto lanes, int64_t i)
              CNNFAST_INLINE_LAMBDA { store_lanes(grad_input + i, value - Lanes<C, lanes.value>{}); },
          [&](int64_t i) { store(grad_input + i, value); });
      return;
    }
    Range before{-1, -1};
    for (int64_t h = first; h < last; ++h) {
      const Range windows = covering_h_.at(h);
      T* grad_input = a_.grad_input.at(n, c, h, 0);
      if (windows.begin == before.begin && windows.end == before.end) {
        copy_row(grad_input - s_.W, grad_input, s_.W);
      } else {
        plane_row(n, c, windows, grad_input);
      }
      before = windows;
    }
  }

 private:
  // One row of a plane: the windows of each output column summed first, then spread over the columns they cover.
  void plane_row(int64_t n, int64_t c, Range windows, T* grad_input) const {
    const int64_t Q = s_.Q, W = s_.W, stride = s_.stride_w, pad = s_.pad_w;
    C* const column = column_;
    for (int64_t q = 0; q < Q; ++q) column[q] = 0;
    for (int64_t p = windows.begin; p < windows.end; ++p) {
      const C row_divisor = row_divisor_[p];
      const T* grad_output = a_.grad_output.at(n, c, p, 0);
      const int64_t step = a_.grad_output.stride.w;
      for (int64_t q = 0; q < Q; ++q) column[q] += load(grad_output + q * step) / (row_divisor * column_divisor_[q]);
    }
    C* row = row_;
    if constexpr (sizeof(T) == sizeof(C)) row = grad_input;
    for (int64_t w = 0; w < W; ++w) row[w] = 0;
    for (int64_t q = 0; q < inner_.begin; ++q) spread(q, row);
    // Each column adds its windows in the order of q, as gather does: hence s from the end.
    for (int64_t s = s_.S - 1; s >= 0; --s)
      for (int64_t q = inner_.begin; q < inner_.end; ++q) row[q * stride - pad + s] += column[q];
    for (int64_t q = inner_.end; q < Q; ++q) spread(q, row);
    if constexpr (sizeof(T) != sizeof(C))
      for (int64_t w = 0; w < W; ++w) store(grad_input + w, row[w]);
  }

  void spread(int64_t q, C* row) const {
    const int64_t origin = q * s_.stride_w - s_.pad_w;
    const Range taps = window_taps(origin, s_.S, 1, s_.W);
    for (int64_t s = taps.begin; s < taps.end; ++s) row[origin + s] += column_[q];
  }

  // Sum over the windows of load_grad(window from the first in h, in w) / divisor.
  template <class Sum, class Load>
  CNNFAST_INLINE Sum gather(Range windows_h, Range windows_w, const Load& load_grad) const {
    Sum sum{};
    for (int64_t q = windows_w.begin; q < windows_w.end; ++q) {
      Sum column{};
      for (int64_t p = windows_h.begin; p < windows_h.end; ++p)
        column += load_grad(p - windows_h.begin, q - windows_w.begin) / (row_divisor_[p] * column_divisor_[q]);
      sum += column;
    }
    return sum;
  }

  const AvgPool2dBackward<T>& a_;
  const Pool2dShape& s_;
  const CoveringWindows covering_h_, covering_w_;
  C *row_divisor_, *column_divisor_, *column_, *row_;
  Range inner_;  // output columns all of whose taps lie inside
};

// Whether all windows have one divisor: no first or last one reaches beyond what is counted.
static inline bool have_one_divisor(const Pool2dShape& s, const Divisors& divisors) {
  for (int64_t p = 1; p < s.P; ++p)
    if (divisors.rows(p) != divisors.rows(0)) return false;
  for (int64_t q = 1; q < s.Q; ++q)
    if (divisors.columns(q) != divisors.columns(0)) return false;
  return true;
}

template <class T>
void avg_pool2d_backward(const AvgPool2dBackward<T>& a, int64_t begin, int64_t end, Compute<T>* scratch) {
  const Pool2dShape& s = a.shape;
  const Divisors divisors(s, a.divisor);
  const bool adjacent = (a.channels_last ? a.grad_output.stride.c : a.grad_output.stride.w) == 1;
  if (adjacent && s.stride_w <= 2 && have_one_divisor(s, divisors)) {
    const auto divisor = static_cast<Compute<T>>(divisors.rows(0) * divisors.columns(0));
    return GatherRows<T, false>(s, a.channels_last, a.grad_output, {}, a.grad_input, divisor).run(begin, end);
  }
  const AvgPool2dGradRows<T> grad(a, scratch);
  if (a.channels_last) {
    for (int64_t row = begin; row < end; ++row) grad.channels_last_row(row / s.H, row % s.H);
  } else {
    for_each_plane(begin, end, s.C, s.H,
                   [&](int64_t n, int64_t c, int64_t first, int64_t last) { grad.plane(n, c, first, last); });
  }
}

template <class T>
constexpr AvgPool2dKernels<T> avg_pool2d_kernels() {
  return {avg_pool2d_forward<T>, avg_pool2d_backward<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
