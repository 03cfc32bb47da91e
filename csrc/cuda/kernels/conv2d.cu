// Convolution of any shape, type and layout: which algorithm takes it, and algorithm `direct`, where a thread computes
// one output pixel of one channel, and a block one slice of one weight's gradient.
#include "cuda/conv2d.h"
#include "cuda/depthwise_conv2d.h"
#include "cuda/implicit_gemm.h"
#include "cuda/kernels/block_sum.h"

namespace cnnfast {
namespace {

// Forward and input gradient: see common/gather_conv.h. `output` is over the G * M channels and the [i, j] grid.
template <class T>
__global__ void gather(GatherConv conv, View<const T> source, GatherWeight<const T> weight, const T* bias, bool relu,
                       View<T> output, bool channels_last, int64_t count) {
  for_each_index(count, [&](int64_t index) {
    const ImageIndex at = image_index(index, conv.G * conv.M, conv.h.outputs, conv.w.outputs, channels_last);
    const Divided group = divide(at.c, conv.M);
    const int64_t h0 = at.h * conv.h.step + conv.h.origin, w0 = at.w * conv.w.step + conv.w.origin;
    const Range rows = window_taps(h0, conv.h.taps, conv.h.spread, conv.h.size);
    const Range columns = window_taps(w0, conv.w.taps, conv.w.spread, conv.w.size);
    const T* filter = weight.data + group.quotient * weight.group + group.remainder * weight.m;
    Compute<T> sum = bias != nullptr ? load(bias + at.c) : Compute<T>(0);
    for (int64_t c = 0; c < conv.C; ++c, filter += weight.c) {
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        const T* x = source.at(at.n, group.quotient * conv.C + c, h0 + r * conv.h.spread, w0);
        const T* f = filter + (conv.h.first_tap + r * conv.h.tap_stride) * weight.r + conv.w.first_tap * weight.s;
        for (int64_t t = columns.begin; t < columns.end; ++t)
          sum += load(x + t * conv.w.spread * source.stride.w) * load(f + t * conv.w.tap_stride * weight.s);
      }
    }
    // A NaN stays one.
    store(output.at(at.n, at.c, at.h, at.w), relu && sum < 0 ? Compute<T>(0) : sum);
  });
}

template <class T>
bool takes_tensor_cores(Cuda device) {
  if constexpr (sizeof(T) == 8) return false;
  return (sizeof(T) == 2 || device.allow_tf32) && has_tensor_cores();
}

// The GatherConvs of one source: one, or an input gradient's residue classes, which share its chunks.
template <class T>
class Gatherer {
 public:
  Gatherer(const char* name, Cuda device, View<const T> source, GatherWeight<const T> weight, const T* bias, bool relu)
      : name_(name), device_(device), source_(source), weight_(weight), bias_(bias), relu_(relu) {}

  void operator()(const GatherConv& conv, View<T> output) {
    if (takes_implicit_gemm(conv)) {
      if constexpr (sizeof(T) < 8) {
        if (takes_tensor_cores<T>(device_) && takes_mma(conv)) {
          if (chunks_.data == nullptr)
            chunks_ = chunks_of(name_, device_, source_, conv.N, conv.G, conv.C, conv.h.size, conv.w.size);
          return implicit_gemm_mma(name_, device_, conv, chunks_, weight_, bias_, relu_, output);
        }
      }
      return implicit_gemm(name_, device_, conv, source_, weight_, bias_, relu_, output);
    }
    if (takes_depthwise(conv)) return depthwise_conv2d(name_, device_, conv, source_, weight_, bias_, relu_, output);
    const int64_t count = conv.N * conv.G * conv.M * conv.h.outputs * conv.w.outputs;
    // Threads side by side write side by side.
    const bool channels_last = output.stride.c < output.stride.w;
    launch_over(name_, device_, gather<T>, count, conv, source_, weight_, bias_, relu_, output, channels_last, count);
  }

 private:
  const char* const name_;
  const Cuda device_;
  const View<const T> source_;
  const GatherWeight<const T> weight_;
  const T* const bias_;
  const bool relu_;
  Chunks<T> chunks_{};
};

// grad_weight[k, c, r, t] = sum over n, p, q of grad_output[n, k, p, q] * input[n, c of the group, h(p, r), w(q, t)]
template <class T>
struct WeightTerm {
  Conv2dShape s;
  View<const T> input, grad_output;

  CNNFAST_DEVICE Compute<T> operator()(int64_t element, int64_t pixel) const {
    const ImageIndex at = image_index(element, s.C / s.G, s.R, s.S, false);  // (k, c, r, t)
    const ImageIndex to = image_index(pixel, 1, s.P, s.Q, false);
    const int64_t h = to.h * s.stride_h - s.pad_top + at.h * s.dilation_h;
    const int64_t w = to.w * s.stride_w - s.pad_left + at.w * s.dilation_w;
    if (h < 0 || h >= s.H || w < 0 || w >= s.W) return 0;
    const int64_t c = divide(at.n, s.K / s.G).quotient * (s.C / s.G) + at.c;
    return load(grad_output.at(to.n, at.n, to.h, to.w)) * load(input.at(to.n, c, h, w));
  }
};

template <class T>
struct BiasTerm {
  int64_t P, Q;
  View<const T> grad_output;

  CNNFAST_DEVICE Compute<T> operator()(int64_t k, int64_t pixel) const {
    const ImageIndex to = image_index(pixel, 1, P, Q, false);
    return load(grad_output.at(to.n, k, to.h, to.w));
  }
};

// partial[slice * sums + i] = the slice's part of the sum of term(i, ...) over [0, terms); a block for each.
template <class A, class Term>
__global__ void sum_slices(Term term, int64_t sums, int64_t terms, int64_t slices, A* partial) {
  CNNFAST_SHARED(A, warps, kThreads / kWarp);
  const Divided at = divide(blockIdx.x, sums);
  const int64_t end = terms * (at.quotient + 1) / slices;
  A sum = 0;
  for (int64_t i = terms * at.quotient / slices + threadIdx.x; i < end; i += blockDim.x) sum += term(at.remainder, i);
  sum = block_sum(sum, warps);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// output[i] = the sum of its slices, in their order. `output` is a [K, C, R, S] view.
template <class T>
__global__ void add_slices(const Compute<T>* partial, int64_t sums, int64_t slices, int64_t C, int64_t R, int64_t S,
                           View<T> output) {
  for_each_index(sums, [&](int64_t i) {
    Compute<T> sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * sums + i];
    const ImageIndex at = image_index(i, C, R, S, false);
    store(output.at(at.n, at.c, at.h, at.w), sum);
  });
}

template <class T, class Term>
void reduce(const char* name, Cuda device, const Term& term, int64_t terms, int64_t K, int64_t C, int64_t R, int64_t S,
            View<T> output) {
  using A = Compute<T>;
  const int64_t sums = K * C * R * S;
  const ReductionPlan plan = reduction_plan(sums, terms);
  if (sums * plan.slices >= int64_t{1} << 31) fail(name, ": more than 2^31 partial sums, but got ", sums * plan.slices);
  A* partial = device.scratch<A>(sums * plan.slices);
  launch(name, device, sum_slices<A, Term>, sums * plan.slices, plan.threads, 0, term, sums, terms, plan.slices,
         partial);
  launch_over(name, device, add_slices<T>, sums, partial, sums, plan.slices, C, R, S, output);
}

}  // namespace

template <class T>
void conv2d_forward(Cuda device, const Conv2dShape& s, View<const T> input, View<const T> weight, const T* bias,
                    const Epilogue<T>& epilogue, View<T> output) {
  const Strides& w = weight.stride;
  const GatherWeight<const T> roles{weight.data, s.K / s.G * w.n, w.n, w.c, w.h, w.w};
  Gatherer<T>("conv2d", device, input, roles, bias, epilogue.activation == Activation::relu)(forward_gather(s), output);
}

template <class T>
void conv2d_backward_input(Cuda device, const Conv2dShape& s, View<const T> grad_output, View<const T> weight,
                           const T* bias, View<T> grad_input) {
  const Strides &f = weight.stride, &x = grad_input.stride;
  const GatherWeight<const T> roles{weight.data, s.K / s.G * f.n, f.c, f.n, f.h, f.w};
  Gatherer<T> run("conv2d_backward_input", device, grad_output, roles, bias, false);
  for (int64_t h = 0; h < min(s.stride_h, s.H); ++h)
    for (int64_t w = 0; w < min(s.stride_w, s.W); ++w)
      run(backward_gather(s, h, w), {grad_input.at(0, 0, h, w), {x.n, x.c, x.h * s.stride_h, x.w * s.stride_w}});
}

template <class T>
void conv2d_backward_weight(Cuda device, const Conv2dShape& s, View<const T> input, View<const T> grad_output,
                            View<T> grad_weight) {
  constexpr const char* kName = "conv2d_backward_weight";
  const int64_t C = s.C / s.G, sums = s.K * C * s.R * s.S;
  const auto partial_of = [&](int64_t slices) { return device.scratch<Compute<T>>(sums * slices); };
  const auto add = [&](const Compute<T>* partial, int64_t slices) {
    launch_over(kName, device, add_slices<T>, sums, partial, sums, slices, C, s.R, s.S, grad_weight);
  };
  if (takes_depthwise_backward_weight(s)) {
    const int64_t slices = reduction_plan(s.K, s.N * s.P * s.Q).slices;
    Compute<T>* partial = partial_of(slices);
    depthwise_conv2d_backward_weight(kName, device, s, slices, input, grad_output, partial);
    return add(partial, slices);
  }
  if (takes_implicit_gemm_backward_weight(s)) {
    if constexpr (sizeof(T) < 8) {
      if (takes_tensor_cores<T>(device) && takes_mma(forward_gather(s))) {
        const auto x = chunks_of(kName, device, input, s.N, s.G, C, s.H, s.W);
        const auto dy = chunks_of(kName, device, grad_output, s.N, s.G, s.K / s.G, s.P, s.Q, true);
        const WeightGradPlan plan = mma_weight_grad_plan(s, x.group);
        float* partial = partial_of(plan.slices);
        implicit_gemm_mma_backward_weight(kName, device, s, plan, x, dy, partial);
        return add(partial, plan.slices);
      }
    }
    const WeightGradPlan plan = plain_weight_grad_plan(s);
    Compute<T>* partial = partial_of(plan.slices);
    implicit_gemm_backward_weight<T>(kName, device, s, plan, input, grad_output, partial);
    return add(partial, plan.slices);
  }
  reduce(kName, device, WeightTerm<T>{s, input, grad_output}, s.N * s.P * s.Q, s.K, C, s.R, s.S, grad_weight);
}

template <class T>
void sum_over_pixels(Cuda device, int64_t N, int64_t K, int64_t P, int64_t Q, View<const T> grad_output, T* grad_bias) {
  reduce("conv2d_backward_bias", device, BiasTerm<T>{P, Q, grad_output}, N * P * Q, K, 1, 1, 1,
         View<T>{grad_bias, {1, 0, 0, 0}});
}

#define CNNFAST_INSTANTIATE(T)                                                                                       \
  template void conv2d_forward(Cuda, const Conv2dShape&, View<const T>, View<const T>, const T*, const Epilogue<T>&, \
                               View<T>);                                                                             \
  template void conv2d_backward_input(Cuda, const Conv2dShape&, View<const T>, View<const T>, const T*, View<T>);    \
  template void conv2d_backward_weight(Cuda, const Conv2dShape&, View<const T>, View<const T>, View<T>);             \
  template void sum_over_pixels(Cuda, int64_t, int64_t, int64_t, int64_t, View<const T>, T*);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
