// ReLU of every instruction set and storage type against its definition.
#include "kernels_testing.h"

using namespace cnnfast;

namespace {

template <class T>
void check_relu(const ReluKernels<T>& relu, int64_t size, int64_t begin) {
  Random random(static_cast<uint64_t>(size));
  Buffer<T> input(size), output(size), grad_output(size), grad_input(size);
  fill(input, random);
  fill(grad_output, random, 1, 9);
  if (size > 3) input.set(size - 1, NAN), input.set(size / 2, -0.0), input.set(size - 2, -INFINITY);
  relu.forward(input.data(), output.data(), begin, size);
  relu.backward(grad_output.data(), output.data(), grad_input.data(), begin, size);
  const Buffer<T> untouched(size);
  for (int64_t i = 0; i < size; ++i) {
    if (i < begin) {
      CHECK(std::memcmp(output.data() + i, untouched.data() + i, sizeof(T)) == 0);
      CHECK(std::memcmp(grad_input.data() + i, untouched.data() + i, sizeof(T)) == 0);
    } else if (std::isnan(input[i])) {
      CHECK(std::isnan(output[i]));
      CHECK_EQ(grad_input[i], grad_output[i]);
    } else {
      CHECK_EQ(output[i], input[i] > 0 ? input[i] : 0.0);
      // A negative zero stays one, as in torch.
      CHECK_EQ(std::signbit(output[i]), input[i] == 0 && std::signbit(input[i]));
      CHECK_EQ(grad_input[i], input[i] > 0 ? grad_output[i] : 0.0);
    }
  }
}

}  // namespace

TEST(relu) {
  for (const CpuKernels* kernels : runnable_kernels()) {
    for_each_type([&](auto zero) {
      using T = decltype(zero);
      for (int64_t size = 0; size <= 70; ++size) {
        for (const int64_t begin : {int64_t{0}, size / 3}) {
          WHERE(kernels->isa, " ", type_name<T>(), " size ", size, " from ", begin);
          check_relu<T>(kernels->of<T>().relu, size, begin);
        }
      }
    });
  }
}
