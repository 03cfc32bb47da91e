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

// The divisor of window (p, q) is rows(p) * columns(q): the taps counted, or the override times one.
class Divisors {
 public:
  Divisors(const Pool2dShape& s, AvgPool2dDivisor divisor) : s_(s), divisor_(divisor) {}

  int64_t rows(int64_t p) const {
    return divisor_.divisor_override != 0 ? divisor_.divisor_override
                                          : counted(p * s_.stride_h - s_.pad_h, s_.R, s_.H, s_.pad_h);
  }
  int64_t columns(int64_t q) const {
    return divisor_.divisor_override != 0 ? 1 : counted(q * s_.stride_w - s_.pad_w, s_.S, s_.W, s_.pad_w);
  }

 private:
  // With ceil_mode a window may reach beyond the padding; those taps never count.
  int64_t counted(int64_t origin, int64_t kernel, int64_t size, int64_t pad) const {
    const int64_t beyond = divisor_.count_include_pad ? pad : 0;
    return min(origin + kernel, size + beyond) - max(origin, -beyond);
  }

  const Pool2dShape& s_;
  const AvgPool2dDivisor divisor_;
};

template <class V, class Load>
CNNFAST_INLINE V sum_taps(Range rows, Range columns, const Load& load_tap) {
  V sum{};
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t s = columns.begin; s < columns.end; ++s) sum += load_tap(r, s);
  return sum;
}

template <class T>
class AvgPool2dRows {
 public:
  using V = ComputeVec<T>;
  static constexpr int kWidth = kComputeLanes<T>;

  explicit AvgPool2dRows(const AvgPool2dForward<T>& args) : a_(args), s_(args.shape), divisors_(s_, args.divisor) {}

  // All channels of output row p of image n.
  void channels_last_row(int64_t n, int64_t p) const {
    const Range rows = taps_of_row(p);
    for (int64_t q = 0; q < s_.Q; ++q) {
      const Range columns = taps_of_column(q);
      const auto one = [&](int64_t c) { window(n, c, p, q, rows, columns); };
      if (a_.input.stride.c != 1) {
        for (int64_t c = 0; c < s_.C; ++c) one(c);
      } else {
        for_each_block<kWidth>(0, s_.C, [&](int64_t c) { block_of_windows<1>(n, c, p, q, rows, columns); }, one);
      }
    }
  }

  // Output row p of one plane.
  void plane_row(int64_t n, int64_t c, int64_t p) const {
    const Range rows = taps_of_row(p);
    const auto block = [&](auto step, int64_t q) { block_of_windows<step.value>(n, c, p, q, rows, {0, s_.S}); };
    for_each_column<kWidth>(s_, a_.input.stride.w == 1, block,
                            [&](int64_t q) { window(n, c, p, q, rows, taps_of_column(q)); });
  }

 private:
  Range taps_of_row(int64_t p) const { return window_taps(p * s_.stride_h - s_.pad_h, s_.R, 1, s_.H); }
  Range taps_of_column(int64_t q) const { return window_taps(q * s_.stride_w - s_.pad_w, s_.S, 1, s_.W); }
  Compute<T> divisor(int64_t p, int64_t q) const {
    return static_cast<Compute<T>>(divisors_.rows(p) * divisors_.columns(q));
  }

  // kWidth windows with one divisor.
  template <int kStep>
  CNNFAST_INLINE void block_of_windows(int64_t n, int64_t c, int64_t p, int64_t q, Range rows, Range columns) const {
    const T* origin = a_.input.at(n, c, p * s_.stride_h - s_.pad_h, q * s_.stride_w - s_.pad_w);
    const int64_t down = a_.input.stride.h, right = a_.input.stride.w;
    const V sum = sum_taps<V>(rows, columns,
                              [&](int64_t r, int64_t s) { return load_lanes<kStep>(origin + r * down + s * right); });
    store_lanes(a_.output.at(n, c, p, q), sum / divisor(p, q));
  }

  void window(int64_t n, int64_t c, int64_t p, int64_t q, Range rows, Range columns) const {
    const int64_t h = p * s_.stride_h - s_.pad_h, w = q * s_.stride_w - s_.pad_w;
    const Compute<T> sum = sum_taps<Compute<T>>(
        rows, columns, [&](int64_t r, int64_t s) { return load(a_.input.at(n, c, h + r, w + s)); });
    store(a_.output.at(n, c, p, q), sum / divisor(p, q));
  }

  const AvgPool2dForward<T>& a_;
  const Pool2dShape& s_;
  const Divisors divisors_;
};

template <class T>
void avg_pool2d_forward(const AvgPool2dForward<T>& a, int64_t begin, int64_t end) {
  const AvgPool2dRows<T> pool(a);
  const int64_t P = a.shape.P, C = a.shape.C;
  for (int64_t row = begin; row < end; ++row) {
    if (a.channels_last) {
      pool.channels_last_row(row / P, row % P);
    } else {
      pool.plane_row(row / P / C, row / P % C, row % P);
    }
  }
}

// The outputs whose window covers an input position.
static inline Range covering_windows(int64_t position, int64_t kernel, int64_t stride, int64_t pad, int64_t outputs) {
  const int64_t begin = ceil_div(max<int64_t>(position + pad - kernel + 1, 0), stride);
  const int64_t end = min((position + pad) / stride + 1, outputs);
  return {min(begin, end), end};
}

template <class T>
class AvgPool2dGradRows {
 public:
  using C = Compute<T>;
  using V = ComputeVec<T>;
  static constexpr int kWidth = kComputeLanes<T>;

  AvgPool2dGradRows(const AvgPool2dBackward<T>& args, C* scratch)
      : a_(args),
        s_(args.shape),
        divisors_(s_, args.divisor),
        column_divisor_(scratch),
        column_(scratch + s_.Q),
        row_(scratch + 2 * s_.Q) {
    for (int64_t q = 0; q < s_.Q; ++q) column_divisor_[q] = static_cast<C>(divisors_.columns(q));
  }

  // All channels of row h of image n.
  void channels_last_row(int64_t n, int64_t h) const {
    const Range windows_h = covering_windows(h, s_.R, s_.stride_h, s_.pad_h, s_.P);
    for (int64_t w = 0; w < s_.W; ++w) {
      const Range windows_w = covering_windows(w, s_.S, s_.stride_w, s_.pad_w, s_.Q);
      const auto one = [&](int64_t c) {
        store(a_.grad_input.at(n, c, h, w), gather<C>(windows_h, windows_w, [&](int64_t p, int64_t q) {
                return load(a_.grad_output.at(n, c, p, q));
              }));
      };
      const auto block = [&](int64_t c) {
        store_lanes(a_.grad_input.at(n, c, h, w), gather<V>(windows_h, windows_w, [&](int64_t p, int64_t q) {
                      return load_lanes<1>(a_.grad_output.at(n, c, p, q));
                    }));
      };
      if (a_.grad_output.stride.c == 1) {
        for_each_block<kWidth>(0, s_.C, block, one);
      } else {
        for (int64_t c = 0; c < s_.C; ++c) one(c);
      }
    }
  }

  // Row h of one plane: the windows of each output column summed first, then spread over the columns they cover.
  void plane_row(int64_t n, int64_t c, int64_t h) const {
    const Range windows = covering_windows(h, s_.R, s_.stride_h, s_.pad_h, s_.P);
    for (int64_t q = 0; q < s_.Q; ++q) column_[q] = 0;
    for (int64_t p = windows.begin; p < windows.end; ++p) {
      const C row_divisor = static_cast<C>(divisors_.rows(p));
      const T* grad_output = a_.grad_output.at(n, c, p, 0);
      const int64_t step = a_.grad_output.stride.w;
      for (int64_t q = 0; q < s_.Q; ++q)
        column_[q] += load(grad_output + q * step) / (row_divisor * column_divisor_[q]);
    }
    for (int64_t w = 0; w < s_.W; ++w) row_[w] = 0;
    for (int64_t q = 0; q < s_.Q; ++q) {
      const int64_t origin = q * s_.stride_w - s_.pad_w;
      const Range taps = window_taps(origin, s_.S, 1, s_.W);
      for (int64_t s = taps.begin; s < taps.end; ++s) row_[origin + s] += column_[q];
    }
    T* grad_input = a_.grad_input.at(n, c, h, 0);
    for (int64_t w = 0; w < s_.W; ++w) store(grad_input + w, row_[w]);
  }

 private:
  template <class Sum, class Load>
  CNNFAST_INLINE Sum gather(Range windows_h, Range windows_w, const Load& load_grad) const {
    Sum sum{};
    for (int64_t q = windows_w.begin; q < windows_w.end; ++q) {
      Sum column{};
      for (int64_t p = windows_h.begin; p < windows_h.end; ++p)
        column += load_grad(p, q) / (static_cast<C>(divisors_.rows(p)) * column_divisor_[q]);
      sum += column;
    }
    return sum;
  }

  const AvgPool2dBackward<T>& a_;
  const Pool2dShape& s_;
  const Divisors divisors_;
  C *column_divisor_, *column_, *row_;
};

template <class T>
void avg_pool2d_backward(const AvgPool2dBackward<T>& a, int64_t begin, int64_t end, Compute<T>* scratch) {
  const AvgPool2dGradRows<T> grad(a, scratch);
  const int64_t H = a.shape.H, C = a.shape.C;
  for (int64_t row = begin; row < end; ++row) {
    if (a.channels_last) {
      grad.channels_last_row(row / H, row % H);
    } else {
      grad.plane_row(row / H / C, row / H % C, row % H);
    }
  }
}

template <class T>
constexpr AvgPool2dKernels<T> avg_pool2d_kernels() {
  return {avg_pool2d_forward<T>, avg_pool2d_backward<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
