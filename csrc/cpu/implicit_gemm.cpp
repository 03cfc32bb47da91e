// The launcher side of `implicit_gemm`. Tasks and the order of every sum come from the plans, which see the shape only.
#include "cpu/implicit_gemm.h"

#include <cstring>
#include <vector>

#include "cpu/channels_last.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// Weight panels are packed at least this many elements at a time.
constexpr int64_t kPackGrain = 1 << 14;

// What packed weights look like, before them in memory where they are kept.
struct PackedHeader {
  int64_t vector_bytes, indirect, G, M, C, taps;
  int64_t depth_channels, depth_taps;  // that are summed at a time
};
constexpr int64_t kHeaderFloats = 16;
static_assert(sizeof(PackedHeader) == kHeaderFloats * sizeof(float));

PackedHeader header_of(const GatherConv& conv, const GatherPlan& plan) {
  return {cpu_kernels().vector_bytes, plan.indirect, conv.G, conv.M, conv.C, conv.taps(), plan.channels, plan.taps};
}

// One GatherConv of a call, and its place in the call's packed weights and tasks.
template <class T>
struct Gather {
  GatherConv conv;
  GatherPlan plan;
  View<T> output;
  int64_t packed, first_panel, first_task;
};

// GatherConvs over one source with one weight.
template <class T>
class GatherCall {
 public:
  explicit GatherCall(View<const T> source) : source_(source) {}

  void add(const GatherConv& conv, View<T> output) {
    const GatherPlan plan = cpu_kernels().of<T>().conv2d.plan(conv, source_.stride, output.stride);
    gathers_.push_back({conv, plan, output, packed_, panels_, tasks_});
    packed_ += plan.packed_weight;
    panels_ += conv.G * plan.panels;
    tasks_ += plan.tasks;
    scratch_ = max(scratch_, plan.scratch_bytes);
  }

  int64_t packed_weight() const { return packed_; }
  PackedHeader header() const { return header_of(gathers_[0].conv, gathers_[0].plan); }

  void run(GatherWeight<const T> weight, const T* bias, const Epilogue<T>& epilogue,
           const float* kept = nullptr) const {
    if (tasks_ == 0) return;
    if constexpr (std::is_same_v<T, float>) {
      const PackedHeader header = this->header();
      if (kept != nullptr && std::memcmp(kept, &header, sizeof header) == 0)
        return gather(kept + kHeaderFloats, bias, epilogue);
    }
    Workspace workspace(Workspace::needed<Compute<T>>(packed_));
    Compute<T>* packed = workspace.take<Compute<T>>(packed_);
    pack(weight, packed);
    gather(packed, bias, epilogue);
  }

  void pack(GatherWeight<const T> weight, Compute<T>* packed) const {
    const Conv2dKernels<T>& kernels = cpu_kernels().of<T>().conv2d;
    parallel_ranges(panels_, max<int64_t>(kPackGrain * panels_ / max<int64_t>(packed_, 1), 1),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) {
                        const Gather<T>& g = at(i, &Gather<T>::first_panel);
                        kernels.pack_weight(g.conv, g.plan, weight, packed + g.packed, i - g.first_panel);
                      }
                    });
  }

 private:
  void gather(const Compute<T>* packed, const T* bias, const Epilogue<T>& epilogue) const {
    const Conv2dKernels<T>& kernels = cpu_kernels().of<T>().conv2d;
    parallel_tasks(tasks_, [&](int64_t i) {
      const Gather<T>& g = at(i, &Gather<T>::first_task);
      Workspace scratch(Workspace::needed<char>(static_cast<int64_t>(scratch_)));
      kernels.gather(g.conv, g.plan, source_, packed + g.packed, bias, epilogue, g.output,
                     scratch.take<char>(static_cast<int64_t>(scratch_)), i - g.first_task);
    });
  }

  // The last gather whose `first` is not beyond `index`.
  const Gather<T>& at(int64_t index, int64_t Gather<T>::*first) const {
    size_t low = 0, high = gathers_.size();
    while (high - low > 1) {
      const size_t middle = (low + high) / 2;
      (gathers_[middle].*first <= index ? low : high) = middle;
    }
    return gathers_[low];
  }

  View<const T> source_;
  std::vector<Gather<T>> gathers_;
  int64_t packed_ = 0, panels_ = 0, tasks_ = 0;
  size_t scratch_ = 0;
};

PlanesSize input_size(const Conv2dShape& s) { return {s.N, s.C, s.H, s.W}; }
PlanesSize output_size(const Conv2dShape& s) { return {s.N, s.K, s.P, s.Q}; }

// Copies are made of as many images at a time.
constexpr int64_t kCopiedElements = int64_t{1} << 22;

// Whether rows and planes lie so.
bool has_planes(const PlanesSize& size, const Strides& stride) {
  return stride.w == 1 && stride.h == size.W && stride.c >= size.H * size.W;
}

// Whether to convolve copies in channels_last: where each of their elements is of so many products that these gain more
// there than the copies take. (Measured on Zen 4: a copy takes some 50 products, which are 20 to 35 % faster.)
constexpr int64_t kCopiedProducts = 180;
// In planes, input gradients of a stride are written one by one.
constexpr int64_t kScatteredProducts = 4;

bool pays_to_copy(const Conv2dShape& s, const Strides& input, const Strides& output,
                  int64_t products = kCopiedProducts) {
  constexpr int64_t kFewChannels = 8;
  const PlanesSize x = input_size(s), y = output_size(s);
  if (s.G != 1 || min(s.C, s.K) < kFewChannels || min(x.elements(), y.elements()) == 0) return false;
  const int64_t elements = x.elements() + y.elements();
  return has_planes(x, input) && has_planes(y, output) && elements <= s.N * kCopiedElements &&
         s.C * s.R * s.S * y.elements() >= products * elements;
}

// Calls run(shape, channels_last source, channels_last result) for some images at a time; `epilogue` is what the
// results go through on their way back.
void through_channels_last(const Conv2dShape& s, PlanesSize from, View<const float> source, PlanesSize to,
                           View<float> result, const Epilogue<float>& epilogue, const auto& run) {
  const int64_t per_image = (from.elements() + to.elements()) / s.N;
  const int64_t images = even_part(s.N, max(kCopiedElements / per_image, int64_t{1}));
  for (int64_t n = 0; n < s.N; n += images) {
    Conv2dShape part = s;
    part.N = from.N = to.N = min(images, s.N - n);
    Workspace workspace(Workspace::needed<float>(from.elements()) + Workspace::needed<float>(to.elements()));
    float* x = workspace.take<float>(from.elements());
    float* y = workspace.take<float>(to.elements());
    copy_from_planes(from, {source.at(n, 0, 0, 0), source.stride}, x);
    run(part, View<const float>{x, from.channels_last()}, View<float>{y, to.channels_last()});
    copy_to_planes(to, y, {result.at(n, 0, 0, 0), result.stride}, epilogue.from(n * result.stride.n));
  }
}

template <class T>
GatherWeight<const T> forward_weight(const Conv2dShape& s, View<const T> weight) {
  const Strides& w = weight.stride;
  return {weight.data, s.K / s.G * w.n, w.n, w.c, w.h, w.w};
}

// The call that implicit_gemm_forward makes in the end, without data.
GatherCall<float> forward_call(const Conv2dShape& s, const Strides& input, const Strides& output) {
  const bool copies = pays_to_copy(s, input, output);
  GatherCall<float> call({nullptr, copies ? input_size(s).channels_last() : input});
  call.add(forward_gather(s), {nullptr, copies ? output_size(s).channels_last() : output});
  return call;
}

}  // namespace

template <class T>
void implicit_gemm_forward(const Conv2dShape& shape, View<const T> input, View<const T> weight, const T* bias,
                           const Epilogue<T>& epilogue, View<T> output, const float* kept) {
  if constexpr (std::is_same_v<T, float>) {
    if (pays_to_copy(shape, input.stride, output.stride)) {
      // A residual is in planes, as the output; without one, the copies are finished.
      const bool later = epilogue.residual != nullptr;
      return through_channels_last(
          shape, input_size(shape), input, output_size(shape), output, later ? epilogue : Activation::none,
          [&](const Conv2dShape& part, View<const float> x, View<float> y) {
            implicit_gemm_forward<T>(part, x, weight, bias, later ? Activation::none : epilogue.activation, y, kept);
          });
    }
  }
  GatherCall<T> call(input);
  call.add(forward_gather(shape), output);
  call.run(forward_weight(shape, weight), bias, epilogue, kept);
}

int64_t implicit_gemm_packed_floats(const Conv2dShape& shape, const Strides& input, const Strides& output) {
  constexpr int64_t kSlack = Workspace::kSlackBytes / sizeof(float);
  return kHeaderFloats + forward_call(shape, input, output).packed_weight() + kSlack;
}

void implicit_gemm_pack(const Conv2dShape& shape, const Strides& input, const Strides& output, View<const float> weight,
                        float* packed) {
  const GatherCall<float> call = forward_call(shape, input, output);
  const PackedHeader header = call.header();
  std::memcpy(packed, &header, sizeof header);
  call.pack(forward_weight(shape, weight), packed + kHeaderFloats);
}

template <class T>
void implicit_gemm_backward_input(const Conv2dShape& shape, View<const T> grad_output, View<const T> weight,
                                  const T* bias, View<T> grad_input) {
  if constexpr (std::is_same_v<T, float>) {
    const int64_t products = shape.stride_w == 1 ? kCopiedProducts : kScatteredProducts;
    if (pays_to_copy(shape, grad_input.stride, grad_output.stride, products)) {
      return through_channels_last(shape, output_size(shape), grad_output, input_size(shape), grad_input,
                                   Activation::none, [&](const Conv2dShape& part, View<const float> y, View<float> x) {
                                     implicit_gemm_backward_input<T>(part, y, weight, bias, x);
                                   });
    }
  }
  const Strides &w = weight.stride, &x = grad_input.stride;
  GatherCall<T> call(grad_output);
  for (int64_t h = 0; h < min(shape.stride_h, shape.H); ++h) {
    for (int64_t v = 0; v < min(shape.stride_w, shape.W); ++v) {
      call.add(backward_gather(shape, h, v),
               {grad_input.at(0, 0, h, v), {x.n, x.c, x.h * shape.stride_h, x.w * shape.stride_w}});
    }
  }
  call.run({weight.data, shape.K / shape.G * w.n, w.c, w.n, w.h, w.w}, bias, Activation::none);
}

template <class T>
void implicit_gemm_backward_weight(const Conv2dShape& shape, View<const T> input, View<const T> grad_output,
                                   View<T> grad_weight) {
  const Conv2dKernels<T>& kernels = cpu_kernels().of<T>().conv2d;
  const GatherConv conv = forward_gather(shape);
  const WeightGradPlan plan = kernels.weight_grad_plan(conv, input.stride);
  const int64_t sums = plan.slices * plan.blocks * plan.block_size;
  Workspace workspace(Workspace::needed<Compute<T>>(sums));
  Compute<T>* partial = workspace.take<Compute<T>>(sums);
  if (plan.pixels.count == 0) {
    for (int64_t i = 0; i < sums; ++i) partial[i] = 0;
  } else {
    parallel_tasks(plan.slices * plan.blocks, [&](int64_t task) {
      Workspace scratch(Workspace::needed<char>(static_cast<int64_t>(plan.scratch_bytes)));
      kernels.weight_grad(conv, plan, input, grad_output, partial,
                          scratch.take<char>(static_cast<int64_t>(plan.scratch_bytes)), task);
    });
  }
  const Strides& w = grad_weight.stride;
  const GatherWeight<T> roles{grad_weight.data, shape.K / shape.G * w.n, w.n, w.c, w.h, w.w};
  parallel_tasks(plan.blocks, [&](int64_t block) { kernels.weight_grad_finish(conv, plan, partial, roles, block); });
}

template <class T>
void sum_over_pixels(int64_t N, int64_t K, int64_t P, int64_t Q, View<const T> grad_output, T* grad_bias) {
  constexpr int64_t kChannels = 16;
  const Conv2dKernels<T>& kernels = cpu_kernels().of<T>().conv2d;
  const int64_t slices = reduction_slices(N, K * static_cast<int64_t>(sizeof(Compute<T>)));
  const int64_t parts = ceil_div(K, kChannels);
  Workspace workspace(Workspace::needed<Compute<T>>(slices * K));
  Compute<T>* partial = workspace.take<Compute<T>>(slices * K);
  parallel_tasks(slices * parts, [&](int64_t task) {
    const int64_t slice = task / parts, k = task % parts * kChannels;
    kernels.bias_grad(grad_output, P, Q, slice * N / slices, (slice + 1) * N / slices, k, min(k + kChannels, K),
                      partial + slice * K);
  });
  for (int64_t k = 0; k < K; ++k) {
    Compute<T> sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * K + k];
    store(grad_bias + k, sum);
  }
}

#define CNNFAST_INSTANTIATE(T)                                                                                        \
  template void implicit_gemm_forward(const Conv2dShape&, View<const T>, View<const T>, const T*, const Epilogue<T>&, \
                                      View<T>, const float*);                                                         \
  template void implicit_gemm_backward_input(const Conv2dShape&, View<const T>, View<const T>, const T*, View<T>);    \
  template void implicit_gemm_backward_weight(const Conv2dShape&, View<const T>, View<const T>, View<T>);             \
  template void sum_over_pixels(int64_t, int64_t, int64_t, int64_t, View<const T>, T*);
CNNFAST_INSTANTIATE(float)
CNNFAST_INSTANTIATE(double)
CNNFAST_INSTANTIATE(bfloat16)
CNNFAST_INSTANTIATE(float16)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
