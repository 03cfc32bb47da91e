// Which instruction set's kernels run. Chosen once, at first use, by asking the processor; capped by the environment
// variable CNNFAST_CPU_ISA. Torch-free.
#pragma once

#include <string>

#include "cpu/kernel_table.h"

namespace cnnfast {

// The kernels in use.
const CpuKernels& cpu_kernels();

// Uses the named instruction set from now on. False, with nothing changed, if it was not built or this processor
// lacks it. For tests; not to be called while kernels run.
bool set_cpu_isa(const std::string& name);

// {"isa": ..., "reason": ..., "built": [...], "supported": [...]} as JSON.
std::string cpu_isa_report();

}  // namespace cnnfast
