// ReLU, forward and backward. Bound by memory: a thread moves 16 bytes at a time where the tensors' alignment allows.
#include "cuda/kernels/launch.h"
#include "cuda/relu.h"

namespace cnnfast {
namespace {

constexpr int kPackBytes = 16;

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T element[kCount];
};

struct Forward {
  template <class T>
  CNNFAST_DEVICE Compute<T> operator()(const T* input) const {
    const Compute<T> x = load(input);
    return x < 0 ? Compute<T>(0) : x;
  }
};

struct Backward {
  template <class T>
  CNNFAST_DEVICE Compute<T> operator()(const T* grad_output, const T* output) const {
    const Compute<T> g = load(grad_output);
    return load(output) <= 0 ? Compute<T>(0) : g;
  }
};

template <int kCount, class Op, class T, class... In>
__global__ void elementwise(int64_t count, T* output, const In*... inputs) {
  for_each_index(count / kCount, [&](int64_t i) {
    const auto apply = [&](const auto&... packs) {
      Pack<T, kCount> result;
      for (int k = 0; k < kCount; ++k) store(result.element + k, Op{}(packs.element + k...));
      reinterpret_cast<Pack<T, kCount>*>(output)[i] = result;
    };
    apply(Pack<In, kCount>(reinterpret_cast<const Pack<In, kCount>*>(inputs)[i])...);
  });
  // The last elements, which fill no pack.
  const int64_t rest = count / kCount * kCount;
  for_each_index(count - rest, [&](int64_t i) { store(output + rest + i, Op{}(inputs + rest + i...)); });
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0; }

template <class Op, class T, class... In>
void run(const char* name, Cuda device, int64_t count, T* output, const In*... inputs) {
  constexpr int kCount = kPackBytes / sizeof(T);
  if (aligned(output) && (aligned(inputs) && ...)) {
    launch_over(name, device, elementwise<kCount, Op, T, In...>, ceil_div(count, int64_t{kCount}), count, output,
                inputs...);
  } else {
    launch_over(name, device, elementwise<1, Op, T, In...>, count, count, output, inputs...);
  }
}

}  // namespace

template <class T>
void relu_forward(Cuda device, const T* input, T* output, int64_t count) {
  run<Forward>("relu", device, count, output, input);
}

template <class T>
void relu_backward(Cuda device, const T* grad_output, const T* output, T* grad_input, int64_t count) {
  run<Backward>("relu_backward", device, count, grad_input, grad_output, output);
}

#define CNNFAST_INSTANTIATE(T)                             \
  template void relu_forward(Cuda, const T*, T*, int64_t); \
  template void relu_backward(Cuda, const T*, const T*, T*, int64_t);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

}  // namespace cnnfast
