#define CNNFAST_ISA scalar
#define CNNFAST_VECTOR_BYTES 16
#include "cpu/isa/instantiate.h"

namespace cnnfast {
extern const CpuKernels scalar_kernels;
const CpuKernels scalar_kernels = scalar::make_kernels("scalar");
}  // namespace cnnfast
