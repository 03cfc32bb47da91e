// A test-only instruction set: 64-byte registers put together from those of the machine, so that the bodies that
// AVX-512 will run are tested where there is no AVX-512.
#define CNNFAST_ISA wide
#define CNNFAST_VECTOR_BYTES 64
#include "cpu/isa/instantiate.h"

namespace cnnfast {
extern const CpuKernels wide_kernels;
const CpuKernels wide_kernels = wide::make_kernels("wide");
}  // namespace cnnfast
