// Max-pooling, forward and backward, with or without ReLU: output[n, c, p, q] = max over the taps (r, s) inside the
// input of input[n, c, p * stride_h - pad_h + r * dilation_h, q * stride_w - pad_w + s * dilation_w].
//
// Forward: a task owns rows of the output; registers run over channels or output columns (pool2d.h). Backward: a task
// owns whole planes (or strips of channels) of grad_input and adds each gradient to its winner, in row-major order
// of the output, so that overlapping windows neither race nor sum in an order of their own.
#pragma once

#include "cpu/kernels/pool2d.h"
#include "cpu/max_pool2d.h"

namespace cnnfast::CNNFAST_ISA {

// The largest of some taps and the tap it came from, for one window or for a register of windows.
template <class V, class Taps>
struct Best {
  V value;
  Taps tap;
};

template <class V, class Taps, class Load, class TapOf>
CNNFAST_INLINE Best<V, Taps> best_tap(Range rows, Range columns, const Load& load_tap, const TapOf& tap_of) {
  Best<V, Taps> best{-__builtin_inff() - V{}, tap_of(rows.begin, columns.begin) - Taps{}};
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t s = columns.begin; s < columns.end; ++s) {
      const V x = load_tap(r, s);
      const auto wins = (x > best.value) | (x != x);
      best.value = wins ? x : best.value;
      best.tap = wins ? tap_of(r, s) - Taps{} : best.tap;
    }
  }
  return best;
}

// Winners as places in the plane. A tap is its distance from the window's origin.
struct PlaneIndex {
  using Stored = int64_t;
  int64_t row, column;

  explicit PlaneIndex(const Pool2dShape& s) : row(s.dilation_h * s.W), column(s.dilation_w) {}
  template <class Tap>
  Tap tap(int64_t r, int64_t s) const {
    return static_cast<Tap>(r * row + s * column);
  }
  template <class V>
  static V value(V best) {
    return best;
  }
  template <class V, class Taps>
  static Taps tap_of(Best<V, Taps> best) {
    return best.tap;
  }
  static int64_t stored(int64_t origin, int64_t tap) { return origin + tap; }
  static constexpr int64_t kNone = -1;

  // Where a stored winner lies in the plane: -1 for none, outside [0, H * W) for what no forward stores.
  struct Places {
    explicit Places(const Pool2dShape&) {}
    int64_t operator()(int64_t, int64_t, int64_t index) const { return index; }
  };
};

// Winners as a byte, after ReLU.
struct WindowCode {
  using Stored = uint8_t;
  int64_t row;

  explicit WindowCode(const Pool2dShape& s) : row(s.S) {}
  template <class Tap>
  Tap tap(int64_t r, int64_t s) const {
    return static_cast<Tap>(r * row + s);
  }
  template <class V>
  static V value(V best) {
    return best <= 0 ? V{} : best;
  }
  template <class V, class Taps>
  static Taps tap_of(Best<V, Taps> best) {
    return best.value <= 0 ? kClipped - Taps{} : best.tap;
  }
  static uint8_t stored(int64_t, int64_t tap) { return static_cast<uint8_t>(tap); }
  static constexpr uint8_t kNone = kClipped;

  class Places {
   public:
    explicit Places(const Pool2dShape& s) : s_(s) {
      for (int64_t code = 0; code < 256; ++code)
        tap_[code] = code < s.R * s.S ? code / s.S * s.dilation_h * s.W + code % s.S * s.dilation_w : s.H * s.W;
    }
    int64_t operator()(int64_t p, int64_t q, uint8_t code) const {
      const int64_t origin = (p * s_.stride_h - s_.pad_h) * s_.W + q * s_.stride_w - s_.pad_w;
      return code == kClipped ? -1 : origin + tap_[code];
    }

   private:
    const Pool2dShape& s_;
    int64_t tap_[256];
  };
};

template <class T, class Winner, bool kKeepWinner>
class MaxPool2dRows {
 public:
  using V = ComputeVec<T>;
  // Taps in a register: integers as wide as the values, so that one comparison selects both.
  using Tap = decltype(V{} < V{});
  using TapLane = __typeof__(Tap{}[0]);
  static constexpr int kWidth = kComputeLanes<T>;

  explicit MaxPool2dRows(const MaxPool2dForward<T, typename Winner::Stored>& args)
      : a_(args), s_(args.shape), winner_(s_) {}

  // All channels of output row p of image n.
  void channels_last_row(int64_t n, int64_t p) const {
    const int64_t h = p * s_.stride_h - s_.pad_h;
    const Range rows = window_taps(h, s_.R, s_.dilation_h, s_.H);
    for (int64_t q = 0; q < s_.Q; ++q) {
      const int64_t w = q * s_.stride_w - s_.pad_w;
      const Range columns = window_taps(w, s_.S, s_.dilation_w, s_.W);
      const auto one = [&](int64_t c) { window(n, c, p, q, rows); };
      if (!in_registers() || a_.input.stride.c != 1 || columns.begin == columns.end) {
        for (int64_t c = 0; c < s_.C; ++c) one(c);
        continue;
      }
      const auto block = [&](int64_t c) { block_of_windows<1>(n, c, p, q, rows, columns, 0); };
      for_each_block<kWidth>(0, s_.C, block, one);
    }
  }

  // Output row p of one plane.
  void plane_row(int64_t n, int64_t c, int64_t p) const {
    const Range rows = window_taps(p * s_.stride_h - s_.pad_h, s_.R, s_.dilation_h, s_.H);
    const auto block = [&](auto step, int64_t q) {
      block_of_windows<step.value>(n, c, p, q, rows, {0, s_.S}, step.value);
    };
    for_each_column<kWidth>(s_, in_registers() && a_.input.stride.w == 1, block,
                            [&](int64_t q) { window(n, c, p, q, rows); });
  }

 private:
  // Whether every tap fits a register's integers.
  bool in_registers() const { return s_.H * s_.W < int64_t{1} << 31; }

  // kWidth windows, the winner's origins `origin_step` apart in the plane.
  template <int kStep>
  CNNFAST_INLINE void block_of_windows(int64_t n, int64_t c, int64_t p, int64_t q, Range rows, Range columns,
                                       int64_t origin_step) const {
    const int64_t h = p * s_.stride_h - s_.pad_h, w = q * s_.stride_w - s_.pad_w;
    const T* origin = a_.input.at(n, c, h, w);
    const int64_t down = s_.dilation_h * a_.input.stride.h, right = s_.dilation_w * a_.input.stride.w;
    const auto best = best_tap<V, Tap>(
        rows, columns, [&](int64_t r, int64_t s) { return load_lanes<kStep>(origin + r * down + s * right); },
        [&](int64_t r, int64_t s) { return winner_.template tap<TapLane>(r, s); });
    store_lanes(a_.output.at(n, c, p, q), Winner::value(best.value));
    if constexpr (kKeepWinner) {
      const Tap taps = Winner::tap_of(best);
      typename Winner::Stored* stored = a_.winner.at(n, c, p, q);
      for (int lane = 0; lane < kWidth; ++lane)
        stored[lane] = Winner::stored(h * s_.W + w + lane * origin_step, taps[lane]);
    }
  }

  // One window, taps outside the input skipped.
  void window(int64_t n, int64_t c, int64_t p, int64_t q, Range rows) const {
    const int64_t h = p * s_.stride_h - s_.pad_h, w = q * s_.stride_w - s_.pad_w;
    const Range columns = window_taps(w, s_.S, s_.dilation_w, s_.W);
    T* output = a_.output.at(n, c, p, q);
    // Dilation can step over a small input altogether.
    const bool empty = rows.begin == rows.end || columns.begin == columns.end;
    const auto best = best_tap<Compute<T>, int64_t>(
        rows, columns,
        [&](int64_t r, int64_t s) { return load(a_.input.at(n, c, h + r * s_.dilation_h, w + s * s_.dilation_w)); },
        [&](int64_t r, int64_t s) { return winner_.template tap<int64_t>(r, s); });
    store(output, empty ? best.value : Winner::value(best.value));
    if constexpr (kKeepWinner) {
      *a_.winner.at(n, c, p, q) = empty ? Winner::kNone : Winner::stored(h * s_.W + w, Winner::tap_of(best));
    }
  }

  const MaxPool2dForward<T, typename Winner::Stored>& a_;
  const Pool2dShape& s_;
  const Winner winner_;
};

template <class T, class Winner, bool kKeepWinner>
void max_pool2d_rows(const MaxPool2dForward<T, typename Winner::Stored>& a, int64_t begin, int64_t end) {
  const MaxPool2dRows<T, Winner, kKeepWinner> pool(a);
  const int64_t P = a.shape.P, C = a.shape.C;
  for (int64_t row = begin; row < end; ++row) {
    if (a.channels_last) {
      pool.channels_last_row(row / P, row % P);
    } else {
      pool.plane_row(row / P / C, row / P % C, row % P);
    }
  }
}

template <class T, class Winner>
void max_pool2d_forward(const MaxPool2dForward<T, typename Winner::Stored>& a, int64_t begin, int64_t end) {
  if (a.winner.data != nullptr) {
    max_pool2d_rows<T, Winner, true>(a, begin, end);
  } else {
    max_pool2d_rows<T, Winner, false>(a, begin, end);
  }
}

// Adds the gradients of output channels [c_begin, c_end) of image n to their winners in `sum`, whose element (pixel,
// c) is at pixel * pixel_stride + (c - c_begin). False if a winner lay outside the plane.
template <class T, class Winner>
CNNFAST_INLINE bool add_to_winners(const MaxPool2dBackward<T, typename Winner::Stored>& a,
                                   const typename Winner::Places& places, int64_t n, int64_t c_begin, int64_t c_end,
                                   Compute<T>* sum, int64_t pixel_stride) {
  const uint64_t pixels = static_cast<uint64_t>(a.shape.H * a.shape.W);
  bool inside = true;
  for (int64_t p = 0; p < a.shape.P; ++p) {
    for (int64_t q = 0; q < a.shape.Q; ++q) {
      for (int64_t c = c_begin; c < c_end; ++c) {
        const int64_t place = places(p, q, *a.winner.at(n, c, p, q));
        if (static_cast<uint64_t>(place) < pixels) {
          sum[place * pixel_stride + c - c_begin] += load(a.grad_output.at(n, c, p, q));
        } else {
          inside &= place == -1;
        }
      }
    }
  }
  return inside;
}

template <class T, class Winner>
bool max_pool2d_backward(const MaxPool2dBackward<T, typename Winner::Stored>& a, int64_t begin, int64_t end,
                         Compute<T>* scratch) {
  const Pool2dShape& s = a.shape;
  const typename Winner::Places places(s);
  const int64_t blocks = max_pool2d_backward_blocks(s, a.channels_last), strip = a.channels_last ? kMaxPoolStrip : 1;
  const int64_t pixels = s.H * s.W, pixel_stride = a.channels_last ? s.C : 1;
  bool inside = true;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, c_begin = task % blocks * strip, c_end = min(c_begin + strip, s.C);
    T* grad_input = a.grad_input.data + n * s.C * pixels + c_begin * (a.channels_last ? 1 : pixels);
    const auto clear = [&](auto* sum, int64_t stride) {
      for (int64_t pixel = 0; pixel < pixels; ++pixel)
        for (int64_t c = 0; c < c_end - c_begin; ++c) sum[pixel * stride + c] = 0;
    };
    const auto add = [&](Compute<T>* sum, int64_t stride) {
      clear(sum, stride);
      // In a plane the loop over channels is gone.
      return a.channels_last ? add_to_winners<T, Winner>(a, places, n, c_begin, c_end, sum, stride)
                             : add_to_winners<T, Winner>(a, places, n, c_begin, c_begin + 1, sum, stride);
    };
    if constexpr (sizeof(T) == sizeof(Compute<T>)) {
      inside &= add(grad_input, pixel_stride);
    } else {
      inside &= add(scratch, strip);
      for (int64_t pixel = 0; pixel < pixels; ++pixel)
        for (int64_t c = 0; c < c_end - c_begin; ++c)
          store(grad_input + pixel * pixel_stride + c, scratch[pixel * strip + c]);
    }
  }
  return inside;
}

template <class T>
constexpr MaxPool2dKernels<T> max_pool2d_kernels() {
  return {{max_pool2d_forward<T, PlaneIndex>, max_pool2d_backward<T, PlaneIndex>},
          {max_pool2d_forward<T, WindowCode>, max_pool2d_backward<T, WindowCode>}};
}

}  // namespace cnnfast::CNNFAST_ISA
