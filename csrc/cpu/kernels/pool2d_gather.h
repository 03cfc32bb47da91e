// The gradient of pooling, gathered: each element of grad_input asks the windows it lies in, registers of channels or
// of columns at a time.
#pragma once

#include "cpu/kernels/pool2d.h"

namespace cnnfast::CNNFAST_ISA {

// The windows that an element lies in: kRows x kColumns of them or, where these are 0, rows x columns. From the first,
// gradient and code of the next lie so many elements down or right, and the element is an earlier one of its taps. With
// kByCode an element takes the gradients of those windows whose winner it is, else of all.
template <class T, bool kByCode>
struct Gather {
  const uint8_t* code;
  const T* grad;
  int64_t tap;
  int64_t rows, columns;
  int64_t code_down, code_right, grad_down, grad_right, tap_down, tap_right;

  // The gradients of a register of elements, whose windows lie one element apart.
  template <int kRows, int kColumns, class V>
  CNNFAST_INLINE V lanes(int64_t at) const {
    using Codes = decltype(V{} < V{});
    using Code = __typeof__(Codes{}[0]);
    V sum{};
    for_each<kRows, kColumns>([&](int64_t i, int64_t j) CNNFAST_INLINE_LAMBDA {
      const V g = load_lanes<1, V>(grad + i * grad_down + j * grad_right + at);
      if constexpr (kByCode) {
        const Codes mine = static_cast<Code>(tap - i * tap_down - j * tap_right) - Codes{};
        const Codes won = load_bytes<Codes>(code + i * code_down + j * code_right + at) == mine;
        sum += reinterpret_cast<V>(won & reinterpret_cast<Codes>(g));
      } else {
        sum += g;
      }
    });
    return sum;
  }
  CNNFAST_INLINE Compute<T> one(int64_t at) const {
    Compute<T> sum = 0;
    for_each<0, 0>([&](int64_t i, int64_t j) CNNFAST_INLINE_LAMBDA {
      const Compute<T> g = load(grad + i * grad_down + j * grad_right + at);
      const bool won = !kByCode || code[i * code_down + j * code_right + at] == tap - i * tap_down - j * tap_right;
      sum += won ? g : 0;  // no branch: it could not be foretold
    });
    return sum;
  }

 private:
  template <int kRows, int kColumns, class F>
  CNNFAST_INLINE void for_each(const F& f) const {
    if constexpr (kRows > 0) {
      unroll<kRows>([&](auto i) CNNFAST_INLINE_LAMBDA {
        unroll<kColumns>([&](auto j) CNNFAST_INLINE_LAMBDA { f(i.value, j.value); });
      });
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) f(i, j);
    }
  }
};

// Rows of grad_input, each element written once: the sum of the gradients of its windows, in row-major order, over
// `divisor`. All views are dense in the last dimension of the order of rows; in NCHW stride_w is 1 or 2.
template <class T, bool kByCode>
class GatherRows {
 public:
  GatherRows(const Pool2dShape& s, bool channels_last, View<const T> grad_output, View<const uint8_t> code,
             View<T> grad_input, Compute<T> divisor)
      : s_(s),
        channels_last_(channels_last),
        grad_output_(grad_output),
        code_(code),
        grad_input_(grad_input),
        divisor_(divisor),
        all_h_(s.R, s.stride_h, s.pad_h, s.P),
        all_w_(s.S, s.stride_w, s.pad_w, s.Q) {
    if (channels_last) return;
    // Columns stride_w * j + phase of one phase lie in windows j + shift of the same shifts: inner_ is where all exist.
    int64_t first = 0, last = s_.W / s_.stride_w;
    for (int64_t phase = 0; phase < s_.stride_w; ++phase) {
      const int64_t highest = floor_div(phase + s_.pad_w, s_.stride_w);
      const int64_t lowest = -floor_div(s_.S - 1 - phase - s_.pad_w, s_.stride_w);
      phase_[phase] = {lowest, highest + 1};
      if (highest < lowest) continue;
      first = max(first, -lowest);
      last = min(last, s_.Q - highest);
    }
    inner_ = {first, max(first, last)};
  }

  // Rows [begin, end) of the N * H (channels_last) or N * C * H.
  void run(int64_t begin, int64_t end) const {
    if (channels_last_) {
      for (int64_t row = begin; row < end; ++row) channels_last_row(row / s_.H, row % s_.H);
    } else {
      for_each_plane(begin, end, s_.C, s_.H,
                     [&](int64_t n, int64_t c, int64_t first, int64_t last) { plane(n, c, first, last); });
    }
  }

 private:
  using Windows = Gather<T, kByCode>;

  // All channels of row h of image n.
  void channels_last_row(int64_t n, int64_t h) const {
    const int64_t C = s_.C, W = s_.W;
    CoveringWindows windows_w = all_w_;
    const Windows row = in_row(windows_of(n, 0, code_.stride.w, grad_output_.stride.w), h);
    T* grad_input = grad_input_.at(n, 0, h, 0);
    for (int64_t w = 0; w < W; ++w, grad_input += C) {
      const Windows windows = in_columns(row, windows_w.move_to(w), w);
      const auto pixel = [&](auto rows, auto columns) CNNFAST_INLINE_LAMBDA {
        for_each_block<T>(
            0, C,
            [&](auto lanes, int64_t c) CNNFAST_INLINE_LAMBDA {
              using V = Lanes<Compute<T>, lanes.value>;
              store_lanes(grad_input + c, over(windows.template lanes<rows.value, columns.value, V>(c)));
            },
            [&](int64_t c) { store(grad_input + c, over(windows.one(c))); });
      };
      if (windows.rows == 1 && windows.columns == 1) {
        pixel(Constant<1>{}, Constant<1>{});
      } else if (windows.rows == 1 && windows.columns == 2) {
        pixel(Constant<1>{}, Constant<2>{});
      } else if (windows.rows == 2 && windows.columns == 1) {
        pixel(Constant<2>{}, Constant<1>{});
      } else if (windows.rows == 2 && windows.columns == 2) {
        pixel(Constant<2>{}, Constant<2>{});
      } else {
        pixel(Constant<0>{}, Constant<0>{});
      }
    }
  }

  // Rows [first, last) of one plane.
  void plane(int64_t n, int64_t c, int64_t first, int64_t last) const {
    const int64_t even = phase_[0].end - phase_[0].begin, odd = phase_[1].end - phase_[1].begin;
    if (s_.stride_w == 1) {
      plane_rows<1, 0, 0>(n, c, first, last);
    } else if (even == 1 && odd == 1) {
      plane_rows<2, 1, 1>(n, c, first, last);
    } else if (even == 1 && odd == 2) {
      plane_rows<2, 1, 2>(n, c, first, last);
    } else {
      plane_rows<2, 0, 0>(n, c, first, last);
    }
  }

  // Those of a plane, or an image, from the first on.
  Windows windows_of(int64_t n, int64_t c, int64_t code_right, int64_t grad_right) const {
    return {code_.at(n, c, 0, 0),
            grad_output_.at(n, c, 0, 0),
            0,
            0,
            0,
            code_.stride.h,
            code_right,
            grad_output_.stride.h,
            grad_right,
            s_.stride_h * s_.S,
            s_.stride_w};
  }
  // Of these, the rows that input row h lies in.
  CNNFAST_INLINE Windows in_row(Windows windows, int64_t h) const {
    const Range p = all_h_.at(h);
    windows.code += p.begin * windows.code_down, windows.grad += p.begin * windows.grad_down;
    windows.tap += all_h_.tap(h, p.begin) * s_.S;
    windows.rows = p.end - p.begin;
    return windows;
  }
  // Columns q of them, which column w lies in.
  CNNFAST_INLINE Windows in_columns(Windows windows, Range q, int64_t w) const {
    windows.code += q.begin * windows.code_right, windows.grad += q.begin * windows.grad_right;
    windows.tap += all_w_.tap(w, q.begin);
    windows.columns = max<int64_t>(q.end - q.begin, 0);
    return windows;
  }

  template <int kStride, int kEven, int kOdd>
  void plane_rows(int64_t n, int64_t c, int64_t first, int64_t last) const {
    const Windows windows = windows_of(n, c, kByCode ? 1 : 0, 1);
    const Windows even = in_columns(windows, phase_[0], 0), odd = in_columns(windows, phase_[1], 1);
    const int64_t W = s_.W, left = inner_.begin * kStride, right = inner_.end * kStride;
    T* grad_input = grad_input_.at(n, c, first, 0);
    Range before{-1, -1};
    for (int64_t h = first; h < last; ++h, grad_input += W) {
      const Range p = all_h_.at(h);
      const bool again = !kByCode && p.begin == before.begin && p.end == before.end;
      before = p;
      if (again) {  // rows that the same windows cover are equal
        copy_row(grad_input - W, grad_input, W);
        continue;
      }
      const Windows even_row = in_row(even, h), odd_row = in_row(odd, h);
      if (kEven > 0 && even_row.rows == 1) {
        columns<kStride, kEven == 0 ? 0 : 1, kEven, kOdd>(even_row, odd_row, grad_input);
      } else if (kOdd == 2 && even_row.rows == 2) {
        columns<kStride, kEven == 0 ? 0 : 2, kEven, kOdd>(even_row, odd_row, grad_input);
      } else {
        columns<kStride, 0, 0, 0>(even_row, odd_row, grad_input);
      }
      for (int64_t w = 0; w < left; ++w) edge(windows, h, w, grad_input + w);
      for (int64_t w = right; w < W; ++w) edge(windows, h, w, grad_input + w);
    }
  }

  template <int kStride, int kRows, int kEven, int kOdd>
  CNNFAST_INLINE void columns(const Windows& even, const Windows& odd, T* grad_input) const {
    for_each_block<T>(
        inner_.begin, inner_.end,
        [&](auto lanes, int64_t j) CNNFAST_INLINE_LAMBDA {
          using V = Lanes<Compute<T>, lanes.value>;
          const V first = over(even.template lanes<kRows, kEven, V>(j));
          if constexpr (kStride == 1) {
            store_lanes(grad_input + j, first);
          } else {
            store_even_odd(grad_input + 2 * j, first, over(odd.template lanes<kRows, kOdd, V>(j)));
          }
        },
        [&](int64_t j) {
          store(grad_input + kStride * j, over(even.one(j)));
          if constexpr (kStride == 2) store(grad_input + 2 * j + 1, over(odd.one(j)));
        });
  }

  // A column that not all windows of its phase cover.
  [[gnu::noinline]] void edge(const Windows& windows, int64_t h, int64_t w, T* grad_input) const {
    store(grad_input, over(in_row(in_columns(windows, all_w_.at(w), w), h).one(0)));
  }

  template <class V>
  CNNFAST_INLINE V over(V sum) const {
    if constexpr (kByCode) return sum;
    return sum / divisor_;
  }

  const Pool2dShape& s_;
  const bool channels_last_;
  const View<const T> grad_output_;
  const View<const uint8_t> code_;
  const View<T> grad_input_;
  const Compute<T> divisor_;
  const CoveringWindows all_h_, all_w_;
  Range phase_[2] = {};  // the shifts of each
  Range inner_{0, 0};
};

}  // namespace cnnfast::CNNFAST_ISA
