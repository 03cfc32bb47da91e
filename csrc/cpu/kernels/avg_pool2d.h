// Average-pooling, forward and backward: output[n, c, p, q] = (sum over the taps (r, s) inside the input of
// input[n, c, p * stride_h - pad_h + r, q * stride_w - pad_w + s]) / divisor(p, q).
//
// Forward: a task owns rows of the output. Backward: a task owns rows of grad_input and gathers the windows that
// cover them, so that overlapping windows do not race. Registers run over channels or columns (pool2d.h). Each sum
// has one order whatever the layout and the register: forward r, s; backward the windows of a column, then the
// columns.
#pragma once

#include "cpu/avg_pool2d.h"
#include "cpu/kernels/pool2d.h"

namespace cnnfast::CNNFAST_ISA {

template <class V, class Load>
CNNFAST_INLINE V sum_taps(Range rows, Range columns, const Load& load_tap) {
  V sum{};
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t s = columns.begin; s < columns.end; ++s) sum += load_tap(r, s);
  return sum;
}

// A register or a single window of the same taps; those from input on are kStep apart.
template <int kStep, class T, class Sum>
CNNFAST_INLINE Sum sum_windows(Range rows, Range columns, const T* input, int64_t down, int64_t right) {
  return sum_taps<Sum>(rows, columns, [&](int64_t r, int64_t s) CNNFAST_INLINE_LAMBDA {
    if constexpr (kStep == 0) {
      return load(input + r * down + s * right);
    } else {
      return load_lanes<kStep>(input + r * down + s * right);
    }
  });
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
      store(output + c, sum_windows<0, T, Compute<T>>(rows, columns, input + c * in.c, in.h, in.w) / divisor);
    };
    const auto whole = [&](int64_t c) CNNFAST_INLINE_LAMBDA {
      store_lanes(output + c, sum_windows<1, T, ComputeVec<T>>(rows, columns, input + c, in.h, in.w) / divisor);
    };
    if (in.c == 1) {
      for_each_block<kComputeLanes<T>>(0, s.C, whole, one);
    } else {
      for (int64_t c = 0; c < s.C; ++c) one(c);
    }
  }
}

// Output row p of one plane.
template <class T>
void average_plane_row(const AvgPool2dForward<T>& a, int64_t n, int64_t c, int64_t p) {
  const Pool2dShape s = a.shape;
  const Strides in = a.input.stride;
  const Divisors divisors(s, a.divisor);
  const int64_t h = p * s.stride_h - s.pad_h, row_divisor = divisors.rows(p);
  const Range rows = window_taps(h, s.R, 1, s.H);
  const T* input = a.input.at(n, c, h, -s.pad_w);
  T* output = a.output.at(n, c, p, 0);
  const auto divisor = [&](int64_t q) { return static_cast<Compute<T>>(row_divisor * divisors.columns(q)); };
  const auto one = [&](int64_t q) {
    const Range columns = window_taps(q * s.stride_w - s.pad_w, s.S, 1, s.W);
    const T* window = input + q * s.stride_w * in.w;
    store(output + q, sum_windows<0, T, Compute<T>>(rows, columns, window, in.h, in.w) / divisor(q));
  };
  const auto whole = [&](auto step, int64_t q) CNNFAST_INLINE_LAMBDA {
    const T* window = input + q * step.value;
    const auto sum = sum_windows<step.value, T, ComputeVec<T>>(rows, {0, s.S}, window, in.h, in.w);
    store_lanes(output + q, sum / divisor(q));  // all of them lie inside: one divisor
  };
  for_each_column<kComputeLanes<T>>(s, in.w, whole, one);
}

template <class T>
void avg_pool2d_forward(const AvgPool2dForward<T>& a, int64_t begin, int64_t end) {
  const int64_t P = a.shape.P;
  if (a.channels_last) {
    for (int64_t row = begin; row < end; ++row) average_channels_last_row(a, row / P, row % P);
  } else {
    for_each_plane_row(begin, end, a.shape.C, P,
                       [&](int64_t n, int64_t c, int64_t p) { average_plane_row(a, n, c, p); });
  }
}

// The outputs whose window covers an input position.
static inline Range covering_windows(int64_t position, int64_t kernel, int64_t stride, int64_t pad, int64_t outputs) {
  const int64_t begin = ceil_div(max<int64_t>(position + pad - kernel + 1, 0), stride);
  const int64_t end = min((position + pad) / stride + 1, outputs);
  return {min(begin, end), end};
}

// The rows of grad_input that one call computes, and what they share: divisors of rows and columns of the output.
template <class T>
class AvgPool2dGradRows {
 public:
  using C = Compute<T>;

  AvgPool2dGradRows(const AvgPool2dBackward<T>& args, C* scratch)
      : a_(args),
        s_(args.shape),
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
    const Range windows_h = covering_windows(h, s_.R, s_.stride_h, s_.pad_h, s_.P);
    Range windows_w{0, 0};
    for (int64_t w = 0; w < s_.W; ++w) {
      while (windows_w.end < s_.Q && origin(windows_w.end) <= w) ++windows_w.end;
      while (windows_w.begin < windows_w.end && origin(windows_w.begin) + s_.S <= w) ++windows_w.begin;
      const T* grad_output = a_.grad_output.at(n, 0, windows_h.begin, windows_w.begin);
      T* grad_input = a_.grad_input.at(n, 0, h, w);
      const auto one = [&](int64_t c) {
        const T* grad = grad_output + c * step.c;
        store(grad_input + c, gather<C>(windows_h, windows_w, [&](int64_t i, int64_t j) CNNFAST_INLINE_LAMBDA {
                return load(grad + i * step.h + j * step.w);
              }));
      };
      const auto whole = [&](int64_t c) CNNFAST_INLINE_LAMBDA {
        const T* grad = grad_output + c;
        store_lanes(grad_input + c,
                    gather<ComputeVec<T>>(windows_h, windows_w, [&](int64_t i, int64_t j) CNNFAST_INLINE_LAMBDA {
                      return load_lanes<1>(grad + i * step.h + j * step.w);
                    }));
      };
      if (step.c == 1) {
        for_each_block<kComputeLanes<T>>(0, s_.C, whole, one);
      } else {
        for (int64_t c = 0; c < s_.C; ++c) one(c);
      }
    }
  }

  // Row h of one plane: the windows of each output column summed first, then spread over the columns they cover.
  void plane_row(int64_t n, int64_t c, int64_t h) const {
    const int64_t Q = s_.Q, W = s_.W;
    const Range windows = covering_windows(h, s_.R, s_.stride_h, s_.pad_h, s_.P);
    for (int64_t q = 0; q < Q; ++q) column_[q] = 0;
    for (int64_t p = windows.begin; p < windows.end; ++p) {
      const C row_divisor = row_divisor_[p];
      const T* grad_output = a_.grad_output.at(n, c, p, 0);
      const int64_t step = a_.grad_output.stride.w;
      for (int64_t q = 0; q < Q; ++q) column_[q] += load(grad_output + q * step) / (row_divisor * column_divisor_[q]);
    }
    T* grad_input = a_.grad_input.at(n, c, h, 0);
    C* row = row_;
    if constexpr (sizeof(T) == sizeof(C)) row = grad_input;
    if (s_.S == 2 && s_.stride_w == 2 && s_.pad_w == 0) {  // one window for each; written so that it vectorises
      const int64_t pairs = min(Q, W / 2);
      for (int64_t q = 0; q < pairs; ++q) row[2 * q] = row[2 * q + 1] = column_[q];
      for (int64_t w = 2 * pairs; w < W; ++w) row[w] = w / 2 < Q ? column_[w / 2] : 0;
    } else {
      for (int64_t w = 0; w < W; ++w) row[w] = 0;
      for (int64_t q = 0; q < inner_.begin; ++q) spread(q, row);
      // Each column adds its windows in the order of q, as gather does: hence s from the end.
      const int64_t stride = s_.stride_w, pad = s_.pad_w;
      for (int64_t s = s_.S - 1; s >= 0; --s)
        for (int64_t q = inner_.begin; q < inner_.end; ++q) row[q * stride - pad + s] += column_[q];
      for (int64_t q = inner_.end; q < Q; ++q) spread(q, row);
    }
    if constexpr (sizeof(T) != sizeof(C))
      for (int64_t w = 0; w < W; ++w) store(grad_input + w, row[w]);
  }

 private:
  int64_t origin(int64_t q) const { return q * s_.stride_w - s_.pad_w; }
  void spread(int64_t q, C* row) const {
    const Range taps = window_taps(origin(q), s_.S, 1, s_.W);
    for (int64_t s = taps.begin; s < taps.end; ++s) row[origin(q) + s] += column_[q];
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
  C *row_divisor_, *column_divisor_, *column_, *row_;
  Range inner_;  // output columns all of whose taps lie inside
};

template <class T>
void avg_pool2d_backward(const AvgPool2dBackward<T>& a, int64_t begin, int64_t end, Compute<T>* scratch) {
  const AvgPool2dGradRows<T> grad(a, scratch);
  const int64_t H = a.shape.H;
  if (a.channels_last) {
    for (int64_t row = begin; row < end; ++row) grad.channels_last_row(row / H, row % H);
  } else {
    for_each_plane_row(begin, end, a.shape.C, H, [&](int64_t n, int64_t c, int64_t h) { grad.plane_row(n, c, h); });
  }
}

template <class T>
constexpr AvgPool2dKernels<T> avg_pool2d_kernels() {
  return {avg_pool2d_forward<T>, avg_pool2d_backward<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
