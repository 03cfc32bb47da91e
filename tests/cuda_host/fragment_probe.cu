// Whether mma and ldmatrix place their elements where csrc/cuda/kernels/tensor_core.h says: small integers, whose
// products are exact, against a plain loop. A program of its own, for a GPU and for the emulation; prints what is
// wrong, exits with 1 then.
#include <cstdio>
#include <vector>

#include "cuda/kernels/tensor_core.h"

namespace cnnfast {
namespace {

constexpr int kRows = 16, kColumns = 8, kMostDepth = 16;

CNNFAST_BOTH static inline int left(int row, int k) { return (row * 5 + k * 3 + row * k) % 7 - 3; }
CNNFAST_BOTH static inline int right(int k, int column) { return (k * 4 + column * 3 + k * column) % 5 - 2; }

// The PTX ISA's tables, "Matrix Fragments for mma.m16n8k8" (.tf32) and "... m16n8k16" (.f16, .bf16), element i of a
// lane.
struct Place {
  int row, column;
};
CNNFAST_BOTH static inline Place place_of_a(int bytes, int lane, int i) {
  const int group = lane >> 2, in_group = lane & 3;
  if (bytes == 4) return {i == 0 || i == 2 ? group : group + 8, i == 0 || i == 1 ? in_group : in_group + 4};
  return {(i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8, in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
CNNFAST_BOTH static inline Place place_of_b(int bytes, int lane, int i) {
  const int group = lane >> 2, in_group = lane & 3;
  if (bytes == 4) return {i == 0 ? in_group : in_group + 4, group};
  return {in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0), group};
}
CNNFAST_BOTH static inline Place place_of_sum(int lane, int i) {
  const int group = lane >> 2, in_group = lane & 3;
  return {i < 2 ? group : group + 8, in_group * 2 + (i & 1)};
}

CNNFAST_DEVICE uint32_t bits_of(tf32, int value) { return float_bits(static_cast<float>(value)); }
template <class E>
CNNFAST_DEVICE uint32_t bits_of(E, int value) {
  E stored;
  store(&stored, static_cast<float>(value));
  return stored.bits;
}

// sums[row * kColumns + column]
template <class E>
__global__ void product(float* sums) {
#if CNNFAST_TENSOR_CORES
  constexpr int kBytes = sizeof(E), kHalves = 4 / kBytes;
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t a[4] = {}, b[2] = {};
  for (int i = 0; i < 4 * kHalves; ++i) {
    const Place at = place_of_a(kBytes, lane, i);
    a[i / kHalves] |= bits_of(E{}, left(at.row, at.column)) << (i % kHalves * 16);
  }
  for (int i = 0; i < 2 * kHalves; ++i) {
    const Place at = place_of_b(kBytes, lane, i);
    b[i / kHalves] |= bits_of(E{}, right(at.row, at.column)) << (i % kHalves * 16);
  }
  float d[4] = {};
  multiply(E{}, d, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i) {
    const Place at = place_of_sum(lane, i);
    sums[at.row * kColumns + at.column] = d[i];
  }
#endif
}

// Four matrices of 8 x 8 elements that are their own numbers; loaded[(transposed * 32 + lane) * 8 + i]
__global__ void load(uint16_t* loaded) {
#if CNNFAST_TENSOR_CORES
  struct alignas(16) Row {
    uint16_t x[8];
  };
  CNNFAST_SHARED(Row, rows, 32);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) rows[lane].x[i] = static_cast<uint16_t>(lane * 8 + i);
  __syncthreads();
  for (int transposed = 0; transposed < 2; ++transposed) {
    uint32_t r[4];
    if (transposed) {
      load_transposed_matrices(r, rows + lane);
    } else {
      load_matrices(r, rows + lane);
    }
    for (int i = 0; i < 8; ++i)
      loaded[(transposed * 32 + lane) * 8 + i] = static_cast<uint16_t>(r[i / 2] >> (i % 2 * 16));
  }
#endif
}

int wrong = 0;

template <class T>
std::vector<T> run(void (*kernel)(T*), size_t count) {
  std::vector<T> result(count);
#ifdef CNNFAST_CUDA_EMULATION
  launch("probe", Cuda{}, kernel, 1, kWarp, 0, result.data());
#else
  T* memory = nullptr;
  check_cuda(cudaMalloc(&memory, count * sizeof(T)), "probe");
  launch("probe", Cuda{}, kernel, 1, kWarp, 0, memory);
  check_cuda(cudaMemcpy(result.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost), "probe");
  check_cuda(cudaFree(memory), "probe");
#endif
  return result;
}

template <class E>
void check_product(const char* type) {
  const int depth = sizeof(E) == 4 ? kMostDepth / 2 : kMostDepth;
  const std::vector<float> sums = run<float>(product<E>, kRows * kColumns);
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kColumns; ++column) {
      int expected = 0;
      for (int k = 0; k < depth; ++k) expected += left(row, k) * right(k, column);
      const float actual = sums[static_cast<size_t>(row * kColumns + column)];
      if (actual == static_cast<float>(expected)) continue;
      ++wrong;
      std::printf("mma of %s: row %d column %d is %g, not %d\n", type, row, column, static_cast<double>(actual),
                  expected);
    }
}

void check_load() {
  const std::vector<uint16_t> loaded = run<uint16_t>(load, 2 * 32 * 8);
  for (int transposed = 0; transposed < 2; ++transposed)
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 8; ++i) {
        const int matrix = i / 2, row = lane / 4, column = lane % 4 * 2 + i % 2;
        const int expected = transposed ? (matrix * 8 + column) * 8 + row : (matrix * 8 + row) * 8 + column;
        const int actual = loaded[static_cast<size_t>((transposed * 32 + lane) * 8 + i)];
        if (actual == expected) continue;
        ++wrong;
        std::printf("ldmatrix%s: lane %d element %d is %d, not %d\n", transposed ? ".trans" : "", lane, i, actual,
                    expected);
      }
}

}  // namespace

}  // namespace cnnfast

int main() {
  cnnfast::check_product<cnnfast::tf32>("tf32");
  cnnfast::check_product<cnnfast::float16>("float16");
  cnnfast::check_product<cnnfast::bfloat16>("bfloat16");
  cnnfast::check_load();
  std::printf("%d elements out of place\n", cnnfast::wrong);
  return cnnfast::wrong == 0 ? 0 : 1;
}
