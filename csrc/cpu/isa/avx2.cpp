#define CNNFAST_ISA avx2
#define CNNFAST_VECTOR_BYTES 32
#include "cpu/isa/instantiate.h"

namespace cnnfast {
extern const CpuKernels avx2_kernels;
const CpuKernels avx2_kernels = avx2::make_kernels("avx2");
}  // namespace cnnfast
