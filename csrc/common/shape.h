// Shapes of convolution and pooling, as plain data shared by every device.
//
// One letter each, everywhere: N batch, C input channels, H W input, K output channels, R S kernel,
// P Q output, G groups. Offsets are 64-bit; strides count elements, not bytes.
//
// Functions here are `static`, and members always inlined: these headers are compiled once per instruction set, and a
// shared inline function would let the linker keep, say, the AVX-512 copy for everybody.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CNNFAST_BOTH __host__ __device__  // also called by CUDA kernels
#else
#define CNNFAST_BOTH
#endif
#define CNNFAST_INLINE CNNFAST_BOTH inline __attribute__((always_inline))
// For a lambda that is the body of a hot loop.
#define CNNFAST_INLINE_LAMBDA __attribute__((always_inline))

namespace cnnfast {

template <class T>
CNNFAST_BOTH static constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
CNNFAST_BOTH static constexpr T max(T a, T b) {
  return a < b ? b : a;
}

CNNFAST_BOTH static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CNNFAST_BOTH static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
// Division that rounds towards minus infinity; b > 0.
CNNFAST_BOTH static constexpr int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// `size` cut in nearly equal parts of at most `most`; the size of a part.
CNNFAST_BOTH static constexpr int64_t even_part(int64_t size, int64_t most) {
  return size <= most ? size : ceil_div(size, ceil_div(size, most));
}

// Greatest common divisor of positive numbers.
CNNFAST_BOTH static constexpr int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }

// Element strides of a 4-dimensional tensor, whatever its memory format.
struct Strides {
  int64_t n, c, h, w;
};

// A tensor as the kernels see it: where it starts and how it is laid out.
template <class T>
struct View {
  T* data;
  Strides stride;

  CNNFAST_INLINE T* at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return data + n * stride.n + c * stride.c + h * stride.h + w * stride.w;
  }
};

// One convolution. Weight is [K, C/G, R, S]; padding may be asymmetric ('same' with an even kernel).
struct Conv2dShape {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t P, Q;
  int64_t G;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t dilation_h, dilation_w;
};

// One pooling of a [N, C, H, W] map to [N, C, P, Q]; kernel R x S.
struct Pool2dShape {
  int64_t N, C, H, W;
  int64_t R, S;
  int64_t P, Q;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
};

// floor((size + padding - dilation * (kernel - 1) - 1) / stride) + 1; padding counts both sides.
CNNFAST_BOTH static constexpr int64_t conv_output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                                                       int64_t dilation) {
  return floor_div(size + padding - dilation * (kernel - 1) - 1, stride) + 1;
}

// As torch's pooling_output_shape: with ceil_mode the last window must still start inside the input or its left
// padding, else it is dropped.
CNNFAST_BOTH static constexpr int64_t pool_output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                                                       int64_t dilation, bool ceil_mode) {
  int64_t out = floor_div(size + 2 * padding - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0), stride) + 1;
  if (ceil_mode && (out - 1) * stride >= size + padding) --out;
  return out;
}

// Half-open range.
struct Range {
  int64_t begin, end;
};

// The taps r of a window for which 0 <= origin + r * dilation < size: padding solved as loop bounds.
CNNFAST_BOTH static constexpr Range window_taps(int64_t origin, int64_t kernel, int64_t dilation, int64_t size) {
  // Nearly every window lies inside; a division costs as much as a small window's sum.
  if (origin >= 0 && origin + (kernel - 1) * dilation < size) return {0, kernel};
  const int64_t begin = origin >= 0 ? 0 : ceil_div(-origin, dilation);
  const int64_t end = size > origin ? ceil_div(size - origin, dilation) : 0;
  return {min(begin, kernel), max(min(begin, kernel), min(end, kernel))};
}

// The value of the one-byte code of a fused conv + ReLU + max-pool element whose window was clipped by ReLU: no
// gradient passes. Any other value is the row-major index of the winner in its window, so windows of more than
// kMaxCodedWindow elements are not coded.
static constexpr uint8_t kClipped = 255;
static constexpr int64_t kMaxCodedWindow = 254;

// How many partial sums a reduction over the batch uses. Fixed by the shape alone, never by the thread count, so
// that bits do not depend on it; sized so that the partial sums stay small beside the tensors they sum.
CNNFAST_BOTH static constexpr int64_t reduction_slices(int64_t batch, int64_t bytes_per_slice) {
  const int64_t kMaxSlices = 16, kBudgetBytes = int64_t{32} << 20;
  return max(int64_t{1}, min(batch, min(kMaxSlices, kBudgetBytes / max(bytes_per_slice, int64_t{1}))));
}

}  // namespace cnnfast
