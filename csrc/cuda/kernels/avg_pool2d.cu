// Average-pooling. Forward: a thread sums one window. Backward: a thread gathers, for one input element, the windows
// that contain it, in row-major order.
#include "cuda/avg_pool2d.h"
#include "cuda/kernels/launch.h"

namespace cnnfast {
namespace {

template <class T>
__global__ void forward(AvgPool2dForward<T> a, int64_t count) {
  const Pool2dShape& s = a.shape;
  const Divisors divisors(s, a.divisor);
  for_each_index(count, [&](int64_t index) {
    const ImageIndex at = image_index(index, s.C, s.P, s.Q, a.channels_last);
    const int64_t h0 = at.h * s.stride_h - s.pad_h, w0 = at.w * s.stride_w - s.pad_w;
    const Range rows = window_taps(h0, s.R, 1, s.H), columns = window_taps(w0, s.S, 1, s.W);
    Compute<T> sum = 0;
    for (int64_t h = h0 + rows.begin; h < h0 + rows.end; ++h)
      for (int64_t w = w0 + columns.begin; w < w0 + columns.end; ++w) sum += load(a.input.at(at.n, at.c, h, w));
    store(a.output.data + index, sum / static_cast<Compute<T>>(divisors.rows(at.h) * divisors.columns(at.w)));
  });
}

template <class T>
__global__ void backward(AvgPool2dBackward<T> a, int64_t count) {
  const Pool2dShape& s = a.shape;
  const Divisors divisors(s, a.divisor);
  const auto windows = [](int64_t at, int64_t pad, int64_t kernel, int64_t stride, int64_t outputs) {
    const int64_t first = at + pad - kernel + 1;
    return Range{first > 0 ? divide(first + stride - 1, stride).quotient : 0,
                 min(divide(at + pad, stride).quotient + 1, outputs)};
  };
  for_each_index(count, [&](int64_t index) {
    const ImageIndex at = image_index(index, s.C, s.H, s.W, a.channels_last);
    const Range rows = windows(at.h, s.pad_h, s.R, s.stride_h, s.P);
    const Range columns = windows(at.w, s.pad_w, s.S, s.stride_w, s.Q);
    Compute<T> sum = 0;
    for (int64_t p = rows.begin; p < rows.end; ++p)
      for (int64_t q = columns.begin; q < columns.end; ++q)
        sum +=
            load(a.grad_output.at(at.n, at.c, p, q)) / static_cast<Compute<T>>(divisors.rows(p) * divisors.columns(q));
    store(a.grad_input.data + index, sum);
  });
}

}  // namespace

template <class T>
void avg_pool2d_forward(Cuda device, const AvgPool2dForward<T>& args) {
  const Pool2dShape& s = args.shape;
  const int64_t count = s.N * s.C * s.P * s.Q;
  launch_over("avg_pool2d", device, forward<T>, count, args, count);
}

template <class T>
void avg_pool2d_backward(Cuda device, const AvgPool2dBackward<T>& args) {
  const Pool2dShape& s = args.shape;
  const int64_t count = s.N * s.C * s.H * s.W;
  launch_over("avg_pool2d_backward", device, backward<T>, count, args, count);
}

#define CNNFAST_INSTANTIATE(T)                                        \
  template void avg_pool2d_forward(Cuda, const AvgPool2dForward<T>&); \
  template void avg_pool2d_backward(Cuda, const AvgPool2dBackward<T>&);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
