#define CNNFAST_ISA neon
#define CNNFAST_VECTOR_BYTES 16
#include "cpu/isa/instantiate.h"

namespace cnnfast {
extern const CpuKernels neon_kernels;
const CpuKernels neon_kernels = neon::make_kernels("neon");
}  // namespace cnnfast
