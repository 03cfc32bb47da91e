// Max-pooling forward, with or without ReLU: output[n, c, p, q] = max over the taps (r, s) inside the input of
// input[n, c, p * stride_h - pad_h + r * dilation_h, q * stride_w - pad_w + s * dilation_w].
//
// A task owns rows of the output; registers run over channels or output columns (pool2d.h).
#pragma once

#include "cpu/kernels/pool2d.h"
#include "cpu/max_pool2d.h"

namespace cnnfast::CNNFAST_ISA {

// Winners as places in the plane. A tap is its distance from the window's origin.
struct PlaneIndex {
  using Stored = int64_t;
  static constexpr bool kRelu = false;
  static constexpr int64_t kNone = -1;
  int64_t row, column;

  explicit PlaneIndex(const Pool2dShape& s) : row(s.dilation_h * s.W), column(s.dilation_w) {}
  template <int>
  CNNFAST_INLINE int64_t tap(int64_t r, int64_t s) const {
    return r * row + s * column;
  }
  // Of lanes whose origins lie kOriginStep apart in the plane.
  template <int kOriginStep, class Taps>
  static void store(int64_t* stored, int64_t origin, Taps taps) {
    for (int lane = 0; lane < kLanesOf<Taps>; ++lane) stored[lane] = origin + lane * kOriginStep + taps[lane];
  }
  static int64_t stored(int64_t origin, int64_t tap) { return origin + tap; }
};

// Winners as a byte, their row-major index in the window; with kRelu, after ReLU.
template <bool kAfterRelu>
struct WindowCode {
  using Stored = uint8_t;
  static constexpr bool kRelu = kAfterRelu;
  static constexpr uint8_t kNone = kClipped;
  int64_t row;

  explicit WindowCode(const Pool2dShape& s) : row(s.S) {}
  // kSize: S where it is known, else 0.
  template <int kSize>
  CNNFAST_INLINE int64_t tap(int64_t r, int64_t s) const {
    return r * (kSize == 0 ? row : kSize) + s;
  }
  template <int kOriginStep, class Taps>
  static void store(uint8_t* stored, int64_t, Taps taps) {
    store_low_bytes(stored, taps);
  }
  static uint8_t stored(int64_t, int64_t tap) { return static_cast<uint8_t>(tap); }
};

template <class T, class Winner, bool kKeepWinner>
class MaxPool2dRows {
 public:
  using Stored = typename Winner::Stored;

  explicit MaxPool2dRows(const MaxPool2dForward<T, Stored>& a)
      : a_(a),
        s_(a.shape),
        winner_(a.shape),
        down_(s_.dilation_h * a.input.stride.h),
        right_(s_.dilation_w * a.input.stride.w),
        // Places of taps are as wide as the values, so that one comparison selects both.
        in_registers_(s_.H * s_.W < int64_t{1} << 31),
        inner_(register_columns(s_, in_registers_ ? a.input.stride.w : 0)) {}

  // All channels of output row p of image n.
  void channels_last_row(int64_t n, int64_t p) const {
    const Range rows = taps_of_row(p);
    const int64_t C = s_.C, h = p * s_.stride_h - s_.pad_h;
    for (int64_t q = 0; q < s_.Q; ++q) {
      const auto one = [&](int64_t c) { one_window(n, c, p, q); };
      const Range columns = taps_of_column(q);
      const int64_t w = q * s_.stride_w - s_.pad_w, origin = h * s_.W + w;
      const T* input = a_.input.at(n, 0, h, w);
      T* output = a_.output.at(n, 0, p, q);
      Stored* stored = kKeepWinner ? a_.winner.at(n, 0, p, q) : nullptr;
      bool nan = false;
      if (in_registers_ && a_.input.stride.c == 1 && rows.begin < rows.end && columns.begin < columns.end) {
        const Block block(*this);
        const auto whole = [&](auto lanes, int64_t c) CNNFAST_INLINE_LAMBDA {
          nan |= block.template pool<1, 0, lanes.value>(rows, columns, input + c, origin, output + c, stored + c);
        };
        for_each_block<T>(0, C, whole, one);
        if (!nan) continue;
      }
      for (int64_t c = 0; c < C; ++c) one(c);
    }
  }

  // Output rows [first, last) of one plane.
  void plane(int64_t n, int64_t c, int64_t first, int64_t last) const {
    const Block block(*this);
    const Range columns{0, s_.S}, inner = inner_, none{s_.Q, s_.Q};
    const int64_t Q = s_.Q, stride_w = s_.stride_w;
    for (int64_t p = first; p < last; ++p) {
      const Range rows = taps_of_row(p);
      const int64_t h = p * s_.stride_h - s_.pad_h, origin = h * s_.W - s_.pad_w;
      const T* input = a_.input.at(n, c, h, -s_.pad_w);
      T* output = a_.output.at(n, c, p, 0);
      Stored* stored = kKeepWinner ? a_.winner.at(n, c, p, 0) : nullptr;
      bool nan = false;
      const auto one = [&](int64_t q) { one_window(n, c, p, q); };
      const auto whole = [&](auto step, auto lanes, int64_t q) CNNFAST_INLINE_LAMBDA {
        constexpr int kStep = step.value;
        nan |= block.template pool<kStep, kStep, lanes.value>(rows, columns, input + q * kStep, origin + q * kStep,
                                                              output + q, stored + q);
      };
      for_each_column<T>(Q, stride_w, rows.begin < rows.end ? inner : none, whole, one);
      if (nan)
        for (int64_t q = 0; q < Q; ++q) one(q);
    }
  }

 private:
  Range taps_of_row(int64_t p) const { return window_taps(p * s_.stride_h - s_.pad_h, s_.R, s_.dilation_h, s_.H); }
  Range taps_of_column(int64_t q) const { return window_taps(q * s_.stride_w - s_.pad_w, s_.S, s_.dilation_w, s_.W); }

  // One window, of the taps inside the input. Dilation can step over a small input altogether.
  [[gnu::noinline]] void one_window(int64_t n, int64_t c, int64_t p, int64_t q) const {
    const Range rows = taps_of_row(p), columns = taps_of_column(q);
    const int64_t h = p * s_.stride_h - s_.pad_h, w = q * s_.stride_w - s_.pad_w;
    const T* origin = a_.input.at(n, c, h, w);
    Compute<T> best = -static_cast<Compute<T>>(__builtin_inff());
    int64_t winner = 0;
    const bool found = rows.begin < rows.end && columns.begin < columns.end;
    if (found) winner = winner_.template tap<0>(rows.begin, columns.begin);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      for (int64_t s = columns.begin; s < columns.end; ++s) {
        const Compute<T> x = load(origin + r * down_ + s * right_);
        const bool wins = (x > best) | (x != x);  // no branch: it could not be foretold
        best = wins ? x : best;
        winner = wins ? winner_.template tap<0>(r, s) : winner;
      }
    }
    Stored stored = found ? Winner::stored(h * s_.W + w, winner) : Winner::kNone;
    if (Winner::kRelu && found && best <= 0) best = 0, stored = Winner::kNone;
    store(a_.output.at(n, c, p, q), best);
    if constexpr (kKeepWinner) *a_.winner.at(n, c, p, q) = stored;
  }

  // A register of windows with the same taps. By value: a winner's store may alias whatever lies in memory.
  struct Block {
    Winner winner;
    int64_t down, right;  // from tap to tap in the input
    int64_t R, S;

    explicit Block(const MaxPool2dRows& of)
        : winner(of.winner_), down(of.down_), right(of.right_), R(of.s_.R), S(of.s_.S) {}

    // kLanes windows from input on, kStep elements apart; their origins lie kOriginStep apart in the plane, from
    // plane_origin on. True where a tap may be NaN: they are then to be done again, one by one, for NaN wins, which
    // would cost half as much again in registers.
    template <int kStep, int kOriginStep, int kLanes>
    CNNFAST_INLINE bool pool(Range rows, Range columns, const T* input, int64_t plane_origin, T* output,
                             Stored* stored) const {
      using V = Lanes<Compute<T>, kLanes>;
      using Taps = decltype(V{} < V{});
      using Tap = __typeof__(Taps{}[0]);
      V best, sum;  // the sum of all taps is NaN if one is, and harmlessly at inf - inf
      Taps winners;
      const auto first = [&](int64_t tap, V x) CNNFAST_INLINE_LAMBDA {
        best = sum = x;
        winners = static_cast<Tap>(tap) - Taps{};
      };
      const auto meet = [&](int64_t tap, V x) CNNFAST_INLINE_LAMBDA {
        const Taps wins = x > best;
        best = wins ? x : best;
        winners = wins ? static_cast<Tap>(tap) - Taps{} : winners;
        sum += x;
      };
      const auto whole = [&](auto size) CNNFAST_INLINE_LAMBDA {
        constexpr int kSize = size.value;
        unroll<kSize>([&](auto r) CNNFAST_INLINE_LAMBDA {
          V x[kSize];
          load_row<kStep>(input + r.value * down, right, x);
          unroll<kSize>([&](auto s) CNNFAST_INLINE_LAMBDA {
            const int64_t tap = winner.template tap<kSize>(r.value, s.value);
            if constexpr (r.value + s.value == 0) {
              first(tap, x[s.value]);
            } else {
              meet(tap, x[s.value]);
            }
          });
        });
      };
      if (is_whole(rows, columns, 2)) {
        whole(Constant<2>{});
      } else if (is_whole(rows, columns, 3)) {
        whole(Constant<3>{});
      } else {
        const auto load_tap = [&](int64_t r, int64_t s)
                                  CNNFAST_INLINE_LAMBDA { return load_lanes<kStep, V>(input + r * down + s * right); };
        first(winner.template tap<0>(rows.begin, columns.begin), load_tap(rows.begin, columns.begin));
        for (int64_t r = rows.begin; r < rows.end; ++r)
          for (int64_t s = columns.begin; s < columns.end; ++s)
            if (r > rows.begin || s > columns.begin) meet(winner.template tap<0>(r, s), load_tap(r, s));
      }
      if constexpr (Winner::kRelu) {
        const Taps clipped = best <= V{};
        best = clipped ? V{} : best;
        winners |= clipped;  // all ones is kClipped in the low byte
      }
      store_lanes(output, best);
      if constexpr (kKeepWinner) Winner::template store<kOriginStep>(stored, plane_origin, winners);
      return any_nan(sum);
    }

    CNNFAST_INLINE bool is_whole(Range rows, Range columns, int64_t size) const {
      return S == size && R == size && rows.end - rows.begin == size && columns.end - columns.begin == size;
    }

    // The taps of one row of windows.
    template <int kStep, int kSize, class V>
    CNNFAST_INLINE static void load_row(const T* row, int64_t right, V (&x)[kSize]) {
      if (kStep == 2 && right == 1) {
        load_even_odd(row, x[0], x[1]);
        if constexpr (kSize > 2) x[2] = load_lanes<kStep, V>(row + 2);
      } else {
        unroll<kSize>([&](auto s) CNNFAST_INLINE_LAMBDA { x[s.value] = load_lanes<kStep, V>(row + s.value * right); });
      }
    }
  };

  const MaxPool2dForward<T, Stored>& a_;
  const Pool2dShape& s_;
  const Winner winner_;
  const int64_t down_, right_;
  const bool in_registers_;
  const Range inner_;
};

template <class T, class Winner, bool kKeepWinner>
void max_pool2d_rows(const MaxPool2dForward<T, typename Winner::Stored>& a, int64_t begin, int64_t end) {
  const MaxPool2dRows<T, Winner, kKeepWinner> rows(a);
  const int64_t P = a.shape.P;
  if (a.channels_last) {
    for (int64_t row = begin; row < end; ++row) rows.channels_last_row(row / P, row % P);
  } else {
    for_each_plane(begin, end, a.shape.C, P,
                   [&](int64_t n, int64_t c, int64_t first, int64_t last) { rows.plane(n, c, first, last); });
  }
}

template <class T, class Winner>
void max_pool2d_forward_as(const MaxPool2dForward<T, typename Winner::Stored>& a, int64_t begin, int64_t end) {
  if (a.winner.data != nullptr) {
    max_pool2d_rows<T, Winner, true>(a, begin, end);
  } else {
    max_pool2d_rows<T, Winner, false>(a, begin, end);
  }
}

template <class T, class Stored>
void max_pool2d_forward(const MaxPool2dForward<T, Stored>& a, int64_t begin, int64_t end) {
  if constexpr (sizeof(Stored) != 1) {
    max_pool2d_forward_as<T, PlaneIndex>(a, begin, end);
  } else if (a.relu) {
    max_pool2d_forward_as<T, WindowCode<true>>(a, begin, end);
  } else {
    max_pool2d_forward_as<T, WindowCode<false>>(a, begin, end);
  }
}

}  // namespace cnnfast::CNNFAST_ISA
