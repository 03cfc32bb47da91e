// Max-pooling. Forward: a thread finds one window's winner. Backward: a thread gathers, for one input element, the
// windows that contain it, in row-major order, so that no atomic is needed and the sum has one order.
#include "cuda/kernels/launch.h"
#include "cuda/max_pool2d.h"

namespace cnnfast {
namespace {

// What is stored of the tap (r, s) at place (h, w).
template <class Stored>
CNNFAST_DEVICE Stored stored(const Pool2dShape& s, int64_t r, int64_t t, int64_t h, int64_t w) {
  return static_cast<Stored>(sizeof(Stored) == 1 ? r * s.S + t : h * s.W + w);
}

template <class T, class Stored>
__global__ void __launch_bounds__(kThreads, 2) forward(MaxPool2dForward<T, Stored> a, int64_t count) {
  const Pool2dShape& s = a.shape;
  for_each_index(count, [&](int64_t index) {
    const ImageIndex at = image_index(index, s.C, s.P, s.Q, a.channels_last);
    const int64_t h0 = at.h * s.stride_h - s.pad_h, w0 = at.w * s.stride_w - s.pad_w;
    const Range rows = window_taps(h0, s.R, s.dilation_h, s.H), columns = window_taps(w0, s.S, s.dilation_w, s.W);
    Compute<T> best = -static_cast<Compute<T>>(__builtin_huge_valf());
    Stored winner = static_cast<Stored>(-1);  // kClipped, or no place
    bool found = false;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      for (int64_t t = columns.begin; t < columns.end; ++t) {
        const int64_t h = h0 + r * s.dilation_h, w = w0 + t * s.dilation_w;
        const Compute<T> x = load(a.input.at(at.n, at.c, h, w));
        if (!found || x > best || x != x) best = x, winner = stored<Stored>(s, r, t, h, w);
        found = true;
      }
    }
    if (a.relu && found && best <= 0) best = 0, winner = static_cast<Stored>(kClipped);
    store(a.output.data + index, best);
    if (a.winner.data != nullptr) a.winner.data[index] = winner;
  });
}

template <class T, class Stored>
__global__ void __launch_bounds__(kThreads, 2) backward(MaxPool2dBackward<T, Stored> a, int64_t count) {
  const Pool2dShape& s = a.shape;
  // Rows of windows that an input row may belong to; those of a column likewise.
  const auto windows = [](int64_t at, int64_t pad, int64_t kernel, int64_t dilation, int64_t stride, int64_t outputs) {
    const int64_t first = at + pad - (kernel - 1) * dilation;
    return Range{first > 0 ? divide(first + stride - 1, stride).quotient : 0,
                 min(divide(at + pad, stride).quotient + 1, outputs)};
  };
  for_each_index(count, [&](int64_t index) {
    const ImageIndex at = image_index(index, s.C, s.H, s.W, a.channels_last);
    const Range rows = windows(at.h, s.pad_h, s.R, s.dilation_h, s.stride_h, s.P);
    const Range columns = windows(at.w, s.pad_w, s.S, s.dilation_w, s.stride_w, s.Q);
    Compute<T> sum = 0;
    for (int64_t p = rows.begin; p < rows.end; ++p) {
      const Divided r = divide(at.h + s.pad_h - p * s.stride_h, s.dilation_h);
      if (r.remainder != 0) continue;
      for (int64_t q = columns.begin; q < columns.end; ++q) {
        const Divided t = divide(at.w + s.pad_w - q * s.stride_w, s.dilation_w);
        if (t.remainder != 0) continue;
        if (*a.winner.at(at.n, at.c, p, q) == stored<Stored>(s, r.quotient, t.quotient, at.h, at.w))
          sum += load(a.grad_output.at(at.n, at.c, p, q));
      }
    }
    store(a.grad_input.data + index, sum);
  });
}

}  // namespace

template <class T, class Stored>
void max_pool2d_forward(Cuda device, const MaxPool2dForward<T, Stored>& args) {
  const Pool2dShape& s = args.shape;
  const int64_t count = s.N * s.C * s.P * s.Q;
  launch_over("max_pool2d", device, forward<T, Stored>, count, args, count);
}

template <class T, class Stored>
void max_pool2d_backward(Cuda device, const MaxPool2dBackward<T, Stored>& args) {
  const Pool2dShape& s = args.shape;
  const int64_t count = s.N * s.C * s.H * s.W;
  launch_over("max_pool2d_backward", device, backward<T, Stored>, count, args, count);
}

#define CNNFAST_INSTANTIATE(T)                                                   \
  template void max_pool2d_forward(Cuda, const MaxPool2dForward<T, int64_t>&);   \
  template void max_pool2d_forward(Cuda, const MaxPool2dForward<T, uint8_t>&);   \
  template void max_pool2d_backward(Cuda, const MaxPool2dBackward<T, int64_t>&); \
  template void max_pool2d_backward(Cuda, const MaxPool2dBackward<T, uint8_t>&);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
