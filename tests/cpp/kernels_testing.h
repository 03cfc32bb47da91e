// What the kernels' tests share: the tables that run here, buffers without a byte to spare, layouts, small integers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "common/number.h"
#include "common/shape.h"
#include "cpu/dispatch.h"
#include "testing.h"

namespace cnnfast {

// Every instruction set that was built and that this processor has, the test-only `wide` among them.
inline std::vector<const CpuKernels*> runnable_kernels() {
  std::vector<const CpuKernels*> found;
#define CNNFAST_ISA_ROW(name, supported, by_default) \
  if (set_cpu_isa(#name)) found.push_back(&cpu_kernels());
#include "cpu/isa/isa.inc"
#undef CNNFAST_ISA_ROW
  return found;
}

// Calls body(T{}) for each storage type.
template <class Body>
void for_each_type(const Body& body) {
  body(float{});
  body(double{});
  body(bfloat16{});
  body(float16{});
}

template <class T>
const char* type_name() {
  if (std::is_same_v<T, float>) return "float32";
  if (std::is_same_v<T, double>) return "float64";
  return std::is_same_v<T, bfloat16> ? "bfloat16" : "float16";
}

// Heap memory of exactly `count` elements: one element beyond is a fault under AddressSanitizer. Bytes start as 0xa5,
// so that an element that was not written shows.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count), data_(new T[static_cast<size_t>(count)]) {
    std::memset(static_cast<void*>(data_.get()), 0xa5, static_cast<size_t>(count) * sizeof(T));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return count_; }
  double operator[](int64_t i) const { return static_cast<double>(load(data_.get() + i)); }
  void set(int64_t i, double value) { store(data_.get() + i, static_cast<Compute<T>>(value)); }

 private:
  int64_t count_;
  std::unique_ptr<T[]> data_;
};

// What T keeps of x: for references, which are computed in double.
template <class T>
double rounded(double x) {
  T stored;
  store(&stored, static_cast<Compute<T>>(x));
  return static_cast<double>(load(&stored));
}

// A small generator with the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  // Uniform in [low, high].
  int64_t between(int64_t low, int64_t high) { return low + bits() % static_cast<uint64_t>(high - low + 1); }

 private:
  uint64_t state_;
};

// Small integers: their products and sums are exact in float, whatever the order, so results can be compared by bits.
template <class T>
void fill(Buffer<T>& buffer, Random& random, int64_t low = -3, int64_t high = 3) {
  for (int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, static_cast<double>(random.between(low, high)));
}

// How an image lies in memory. kGaps: in NCHW order with an unused element beside each one.
enum class Layout { kNchw, kNhwc, kGaps };
constexpr Layout kLayouts[] = {Layout::kNchw, Layout::kNhwc, Layout::kGaps};

inline Strides strides_of(Layout layout, int64_t C, int64_t H, int64_t W) {
  if (layout == Layout::kNhwc) return {C * H * W, 1, W * C, C};
  const int64_t step = layout == Layout::kGaps ? 2 : 1;
  return {C * H * W * step, H * W * step, W * step, step};
}

// An [N, C, H, W] tensor that ends with its last element.
template <class T>
struct Image {
  Image(int64_t N, int64_t C, int64_t H, int64_t W, Layout layout)
      : N(N),
        C(C),
        H(H),
        W(W),
        stride(strides_of(layout, C, H, W)),
        data(N * C * H * W == 0
                 ? 0
                 : 1 + (N - 1) * stride.n + (C - 1) * stride.c + (H - 1) * stride.h + (W - 1) * stride.w) {}
  View<T> view() { return {data.data(), stride}; }
  View<const T> view() const { return {data.data(), stride}; }
  int64_t offset(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return n * stride.n + c * stride.c + h * stride.h + w * stride.w;
  }
  double at(int64_t n, int64_t c, int64_t h, int64_t w) const { return data[offset(n, c, h, w)]; }

  int64_t N, C, H, W;
  Strides stride;
  Buffer<T> data;
};

// Calls body(n, c, h, w) for every element, in row-major order.
template <class T, class Body>
void for_each_element(const Image<T>& image, const Body& body) {
  for (int64_t n = 0; n < image.N; ++n)
    for (int64_t c = 0; c < image.C; ++c)
      for (int64_t h = 0; h < image.H; ++h)
        for (int64_t w = 0; w < image.W; ++w) body(n, c, h, w);
}

// Runs `run` on [0, tasks) in two pieces, as two threads would.
template <class Run>
void in_two_pieces(int64_t tasks, const Run& run) {
  run(0, tasks / 3);
  run(tasks / 3, tasks);
}

// Equal, or both NaN.
inline bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

}  // namespace cnnfast
