#define CNNFAST_ISA avx512
#define CNNFAST_VECTOR_BYTES 64
#include "cpu/isa/instantiate.h"

namespace cnnfast {
extern const CpuKernels avx512_kernels;
const CpuKernels avx512_kernels = avx512::make_kernels("avx512");
}  // namespace cnnfast
