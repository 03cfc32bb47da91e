// Max-pooling backward, in two ways that add in the same order, the row-major order of the output:
//
// gather: a task owns rows of grad_input. Each of its elements asks the windows it lies in whether it is their winner,
// registers of channels or of columns at a time, and is written once. For codes of small windows.
//
// scatter: a task owns whole planes (or strips of channels) of grad_input and adds each gradient to its winner. For
// everything else.
#pragma once

#include "cpu/kernels/max_pool2d.h"
#include "cpu/kernels/pool2d_gather.h"

namespace cnnfast::CNNFAST_ISA {

template <class T>
void max_pool2d_gather(const MaxPool2dBackward<T, uint8_t>& a, int64_t begin, int64_t end) {
  GatherRows<T, true>(a.shape, a.channels_last, a.grad_output, a.winner, a.grad_input, 1).run(begin, end);
}

// Where a stored winner lies in the plane, -1 for none; outside [0, H * W) for what no forward stores.
class PlacesOfIndices {
 public:
  explicit PlacesOfIndices(const Pool2dShape&) {}
  int64_t operator()(int64_t, int64_t, int64_t index) const { return index; }
};

class PlacesOfCodes {
 public:
  explicit PlacesOfCodes(const Pool2dShape& s) : s_(s) {
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

template <class Stored>
using PlacesOf = std::conditional_t<std::is_same_v<Stored, uint8_t>, PlacesOfCodes, PlacesOfIndices>;

// Adds the gradients of some channels of image n to their winners in `sum`, where they are adjacent and pixels
// pixel_stride apart. False if a winner lay outside the plane.
template <class T, class Stored>
CNNFAST_INLINE bool add_to_winners(const MaxPool2dBackward<T, Stored>& a, const PlacesOf<Stored>& places, int64_t n,
                                   int64_t first_channel, int64_t channels, Compute<T>* sum, int64_t pixel_stride) {
  const uint64_t pixels = static_cast<uint64_t>(a.shape.H * a.shape.W);
  const Strides winner_step = a.winner.stride, grad_step = a.grad_output.stride;
  bool inside = true;
  for (int64_t p = 0; p < a.shape.P; ++p) {
    const Stored* winner = a.winner.at(n, first_channel, p, 0);
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
template <class T, class Stored>
CNNFAST_INLINE bool scatter_plane(const MaxPool2dBackward<T, Stored>& a, const PlacesOf<Stored>& places, int64_t task,
                                  Compute<T>* scratch) {
  const int64_t pixels = a.shape.H * a.shape.W;
  T* grad_input = a.grad_input.data + task * pixels;
  Compute<T>* sum = scratch;
  if constexpr (sizeof(T) == sizeof(Compute<T>)) sum = grad_input;
  for (int64_t i = 0; i < pixels; ++i) sum[i] = 0;
  const bool inside = add_to_winners<T, Stored>(a, places, task / a.shape.C, task % a.shape.C, 1, sum, 1);
  if constexpr (sizeof(T) != sizeof(Compute<T>))
    for (int64_t i = 0; i < pixels; ++i) store(grad_input + i, sum[i]);
  return inside;
}

// channels_last: a strip of channels a task.
template <class T, class Stored>
CNNFAST_INLINE bool scatter_strip(const MaxPool2dBackward<T, Stored>& a, const PlacesOf<Stored>& places, int64_t task,
                                  Compute<T>* scratch) {
  const Pool2dShape& s = a.shape;
  const int64_t width = max_pool2d_scatter_strip(s), strips = ceil_div(s.C, width), pixels = s.H * s.W;
  const int64_t n = task / strips, first = task % strips * width, channels = min(width, s.C - first);
  T* grad_input = a.grad_input.data + n * pixels * s.C + first;
  Compute<T>* sum = scratch;
  int64_t pixel_stride = width;
  if constexpr (sizeof(T) == sizeof(Compute<T>)) sum = grad_input, pixel_stride = s.C;
  for (int64_t i = 0; i < pixels; ++i)
    for (int64_t c = 0; c < channels; ++c) sum[i * pixel_stride + c] = 0;
  const bool inside = add_to_winners<T, Stored>(a, places, n, first, channels, sum, pixel_stride);
  if constexpr (sizeof(T) != sizeof(Compute<T>))
    for (int64_t i = 0; i < pixels; ++i)
      for (int64_t c = 0; c < channels; ++c) store(grad_input + i * s.C + c, sum[i * width + c]);
  return inside;
}

template <class T, class Stored>
bool max_pool2d_scatter(const MaxPool2dBackward<T, Stored>& a, int64_t begin, int64_t end, Compute<T>* scratch) {
  const PlacesOf<Stored> places(a.shape);
  bool inside = true;
  for (int64_t task = begin; task < end; ++task) {
    inside &= a.channels_last ? scatter_strip<T, Stored>(a, places, task, scratch)
                              : scatter_plane<T, Stored>(a, places, task, scratch);
  }
  return inside;
}

template <class T>
constexpr MaxPool2dKernels<T> max_pool2d_kernels() {
  return {{max_pool2d_forward<T, int64_t>, max_pool2d_scatter<T, int64_t>},
          {max_pool2d_forward<T, uint8_t>, max_pool2d_scatter<T, uint8_t>},
          max_pool2d_gather<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
