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
  decltype(V{} > V{}) nan;  // where a tap was NaN
};

// The best of load_tap(r, s), whose tap is tap_of(r, s). NaN wins in a single window; in a register it is only
// reported, because that costs half as much and the windows can be done again one by one.
template <class V, class Taps, class Load, class TapOf>
CNNFAST_INLINE Best<V, Taps> best_tap(Range rows, Range columns, const Load& load_tap, const TapOf& tap_of) {
  constexpr bool kRegister = requires(V v) { v[0]; };
  Best<V, Taps> best{-__builtin_inff() - V{}, tap_of(rows.begin, columns.begin) - Taps{}, {}};
  const auto meet = [&](int64_t r, int64_t s) CNNFAST_INLINE_LAMBDA {
    const V x = load_tap(r, s);
    const auto is_nan = x != x;
    auto wins = x > best.value;
    if constexpr (!kRegister) wins |= is_nan;
    best.value = wins ? x : best.value;
    best.tap = wins ? tap_of(r, s) - Taps{} : best.tap;
    best.nan |= is_nan;
  };
  const int64_t r = rows.begin, s = columns.begin;
  if (rows.end - r == 2 && columns.end - s == 2) {  // the common window, unrolled
    meet(r, s), meet(r, s + 1), meet(r + 1, s), meet(r + 1, s + 1);
  } else {
    for (int64_t i = r; i < rows.end; ++i)
      for (int64_t j = s; j < columns.end; ++j) meet(i, j);
  }
  return best;
}

template <class Mask>
bool any_bit(const Mask& mask) {
  uint64_t words[sizeof mask / 8], any = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (const uint64_t word : words) any |= word;
  return any != 0;
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

template <class T, class Winner>
using ForwardOf = MaxPool2dForward<T, typename Winner::Stored>;
template <class T, class Winner>
using BackwardOf = MaxPool2dBackward<T, typename Winner::Stored>;

static inline Range taps_of_row(const Pool2dShape& s, int64_t p) {
  return window_taps(p * s.stride_h - s.pad_h, s.R, s.dilation_h, s.H);
}
static inline Range taps_of_column(const Pool2dShape& s, int64_t q) {
  return window_taps(q * s.stride_w - s.pad_w, s.S, s.dilation_w, s.W);
}

// One window, of the taps inside the input. Dilation can step over a small input altogether.
template <class T, class Winner, bool kKeepWinner>
void one_window(const ForwardOf<T, Winner>& a, int64_t n, int64_t c, int64_t p, int64_t q) {
  const Pool2dShape& s = a.shape;
  const Winner winner(s);
  const Range rows = taps_of_row(s, p), columns = taps_of_column(s, q);
  const bool empty = rows.begin == rows.end || columns.begin == columns.end;
  const int64_t h = p * s.stride_h - s.pad_h, w = q * s.stride_w - s.pad_w;
  const T* origin = a.input.at(n, c, h, w);
  const int64_t down = s.dilation_h * a.input.stride.h, right = s.dilation_w * a.input.stride.w;
  const auto best = best_tap<Compute<T>, int64_t>(
      rows, columns, [&](int64_t i, int64_t j) { return load(origin + i * down + j * right); },
      [&](int64_t i, int64_t j) { return winner.template tap<int64_t>(i, j); });
  store(a.output.at(n, c, p, q), empty ? best.value : Winner::value(best.value));
  if constexpr (kKeepWinner)
    *a.winner.at(n, c, p, q) = empty ? Winner::kNone : Winner::stored(h * s.W + w, Winner::tap_of(best));
}

// A register of windows with the same taps. By value: a winner's store may alias whatever lies in memory.
template <class T, class Winner, bool kKeepWinner>
struct BlockOfWindows {
  using V = ComputeVec<T>;
  // Taps in a register: integers as wide as the values, so that one comparison selects both.
  using Taps = decltype(V{} < V{});
  using Tap = __typeof__(Taps{}[0]);
  static constexpr int kWidth = kComputeLanes<T>;

  Winner winner;
  int64_t down, right;  // from tap to tap in the input

  explicit BlockOfWindows(const ForwardOf<T, Winner>& a)
      : winner(a.shape), down(a.shape.dilation_h * a.input.stride.h), right(a.shape.dilation_w * a.input.stride.w) {}

  static bool holds_taps_of(const Pool2dShape& s) { return s.H * s.W < int64_t{1} << 31; }

  // Windows from input on, kStep elements apart; their origins lie kOriginStep apart in the plane, from plane_origin
  // on. Returns where a tap was NaN.
  template <int kStep, int kOriginStep>
  CNNFAST_INLINE Taps pool(Range rows, Range columns, const T* input, int64_t plane_origin, T* output,
                           typename Winner::Stored* stored) const {
    const auto best = best_tap<V, Taps>(
        rows, columns,
        [&](int64_t r, int64_t s) CNNFAST_INLINE_LAMBDA { return load_lanes<kStep>(input + r * down + s * right); },
        [&](int64_t r, int64_t s) CNNFAST_INLINE_LAMBDA { return winner.template tap<Tap>(r, s); });
    store_lanes(output, Winner::value(best.value));
    if constexpr (kKeepWinner) {
      const Taps taps = Winner::tap_of(best);
      for (int lane = 0; lane < kWidth; ++lane)
        stored[lane] = Winner::stored(plane_origin + lane * kOriginStep, taps[lane]);
    }
    return best.nan;
  }
};

// All channels of output row p of image n.
template <class T, class Winner, bool kKeepWinner>
void channels_last_row(const ForwardOf<T, Winner>& a, int64_t n, int64_t p) {
  using Block = BlockOfWindows<T, Winner, kKeepWinner>;
  const Pool2dShape s = a.shape;
  const bool in_registers = a.input.stride.c == 1 && Block::holds_taps_of(s);
  const Block block(a);
  const Range rows = taps_of_row(s, p);
  for (int64_t q = 0; q < s.Q; ++q) {
    const auto one = [&](int64_t c) { one_window<T, Winner, kKeepWinner>(a, n, c, p, q); };
    const Range columns = taps_of_column(s, q);
    const int64_t h = p * s.stride_h - s.pad_h, w = q * s.stride_w - s.pad_w;
    const T* input = a.input.at(n, 0, h, w);
    T* output = a.output.at(n, 0, p, q);
    typename Winner::Stored* stored = kKeepWinner ? a.winner.at(n, 0, p, q) : nullptr;
    typename Block::Taps nan{};
    if (in_registers && columns.begin < columns.end) {
      const auto whole = [&](int64_t c) CNNFAST_INLINE_LAMBDA {
        nan |= block.template pool<1, 0>(rows, columns, input + c, h * s.W + w, output + c, stored + c);
      };
      for_each_block<Block::kWidth>(0, s.C, whole, one);
    }
    if (!in_registers || columns.begin == columns.end || any_bit(nan))
      for (int64_t c = 0; c < s.C; ++c) one(c);
  }
}

// Output row p of one plane.
template <class T, class Winner, bool kKeepWinner>
void plane_row(const ForwardOf<T, Winner>& a, int64_t n, int64_t c, int64_t p) {
  using Block = BlockOfWindows<T, Winner, kKeepWinner>;
  const Pool2dShape s = a.shape;
  const Block block(a);
  const Range rows = taps_of_row(s, p);
  const int64_t h = p * s.stride_h - s.pad_h, plane_origin = h * s.W - s.pad_w;
  const T* input = a.input.at(n, c, h, -s.pad_w);
  T* output = a.output.at(n, c, p, 0);
  typename Winner::Stored* stored = kKeepWinner ? a.winner.at(n, c, p, 0) : nullptr;
  typename Block::Taps nan{};
  const auto one = [&](int64_t q) { one_window<T, Winner, kKeepWinner>(a, n, c, p, q); };
  const auto whole = [&](auto step, int64_t q) CNNFAST_INLINE_LAMBDA {
    constexpr int kStep = step.value;
    nan |= block.template pool<kStep, kStep>(rows, {0, s.S}, input + q * kStep, plane_origin + q * kStep, output + q,
                                             stored + q);
  };
  for_each_column<Block::kWidth>(s, Block::holds_taps_of(s) ? a.input.stride.w : 0, whole, one);
  if (any_bit(nan))
    for (int64_t q = 0; q < s.Q; ++q) one(q);
}

template <class T, class Winner, bool kKeepWinner>
void max_pool2d_rows(const ForwardOf<T, Winner>& a, int64_t begin, int64_t end) {
  const int64_t P = a.shape.P;
  if (a.channels_last) {
    for (int64_t row = begin; row < end; ++row) channels_last_row<T, Winner, kKeepWinner>(a, row / P, row % P);
  } else {
    for_each_plane_row(begin, end, a.shape.C, P,
                       [&](int64_t n, int64_t c, int64_t p) { plane_row<T, Winner, kKeepWinner>(a, n, c, p); });
  }
}

template <class T, class Winner>
void max_pool2d_forward(const ForwardOf<T, Winner>& a, int64_t begin, int64_t end) {
  if (a.winner.data != nullptr) {
    max_pool2d_rows<T, Winner, true>(a, begin, end);
  } else {
    max_pool2d_rows<T, Winner, false>(a, begin, end);
  }
}

// Adds the gradients of some channels of image n to their winners in `sum`, where they are adjacent and pixels
// pixel_stride apart. False if a winner lay outside the plane.
template <class T, class Winner>
CNNFAST_INLINE bool add_to_winners(const BackwardOf<T, Winner>& a, const typename Winner::Places& places, int64_t n,
                                   int64_t first_channel, int64_t channels, Compute<T>* sum, int64_t pixel_stride) {
  const uint64_t pixels = static_cast<uint64_t>(a.shape.H * a.shape.W);
  const Strides winner_step = a.winner.stride, grad_step = a.grad_output.stride;
  bool inside = true;
  for (int64_t p = 0; p < a.shape.P; ++p) {
    const typename Winner::Stored* winner = a.winner.at(n, first_channel, p, 0);
    const T* grad_output = a.grad_output.at(n, first_channel, p, 0);
    for (int64_t q = 0; q < a.shape.Q; ++q) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t place = places(p, q, winner[q * winner_step.w + c * winner_step.c]);
        if (static_cast<uint64_t>(place) < pixels) [[likely]] {
          sum[place * pixel_stride + c] += load(grad_output + q * grad_step.w + c * grad_step.c);
        } else {
          inside &= place == -1;
        }
      }
    }
  }
  return inside;
}

// Planes: one channel a task, pixels adjacent.
template <class T, class Winner>
CNNFAST_INLINE bool backward_plane(const BackwardOf<T, Winner>& a, const typename Winner::Places& places, int64_t task,
                                   Compute<T>* scratch) {
  const int64_t pixels = a.shape.H * a.shape.W;
  T* grad_input = a.grad_input.data + task * pixels;
  Compute<T>* sum = scratch;
  if constexpr (sizeof(T) == sizeof(Compute<T>)) sum = grad_input;
  for (int64_t i = 0; i < pixels; ++i) sum[i] = 0;
  const bool inside = add_to_winners<T, Winner>(a, places, task / a.shape.C, task % a.shape.C, 1, sum, 1);
  if constexpr (sizeof(T) != sizeof(Compute<T>))
    for (int64_t i = 0; i < pixels; ++i) store(grad_input + i, sum[i]);
  return inside;
}

// channels_last: a strip of channels a task.
template <class T, class Winner>
CNNFAST_INLINE bool backward_strip(const BackwardOf<T, Winner>& a, const typename Winner::Places& places, int64_t task,
                                   Compute<T>* scratch) {
  const Pool2dShape& s = a.shape;
  const int64_t width = max_pool2d_strip(s), strips = ceil_div(s.C, width), pixels = s.H * s.W;
  const int64_t n = task / strips, first = task % strips * width, channels = min(width, s.C - first);
  T* grad_input = a.grad_input.data + n * pixels * s.C + first;
  Compute<T>* sum = scratch;
  int64_t pixel_stride = width;
  if constexpr (sizeof(T) == sizeof(Compute<T>)) sum = grad_input, pixel_stride = s.C;
  for (int64_t i = 0; i < pixels; ++i)
    for (int64_t c = 0; c < channels; ++c) sum[i * pixel_stride + c] = 0;
  const bool inside = add_to_winners<T, Winner>(a, places, n, first, channels, sum, pixel_stride);
  if constexpr (sizeof(T) != sizeof(Compute<T>))
    for (int64_t i = 0; i < pixels; ++i)
      for (int64_t c = 0; c < channels; ++c) store(grad_input + i * s.C + c, sum[i * width + c]);
  return inside;
}

template <class T, class Winner>
bool max_pool2d_backward(const BackwardOf<T, Winner>& a, int64_t begin, int64_t end, Compute<T>* scratch) {
  const typename Winner::Places places(a.shape);
  bool inside = true;
  for (int64_t task = begin; task < end; ++task) {
    inside &= a.channels_last ? backward_strip<T, Winner>(a, places, task, scratch)
                              : backward_plane<T, Winner>(a, places, task, scratch);
  }
  return inside;
}

template <class T>
constexpr MaxPool2dKernels<T> max_pool2d_kernels() {
  return {{max_pool2d_forward<T, PlaneIndex>, max_pool2d_backward<T, PlaneIndex>},
          {max_pool2d_forward<T, WindowCode>, max_pool2d_backward<T, WindowCode>}};
}

}  // namespace cnnfast::CNNFAST_ISA
