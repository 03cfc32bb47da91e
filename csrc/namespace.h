// Under which name torch knows the ops. In tests, CUDA's launchers and kernels are registered a second time, for CPU
// tensors, over the emulation of tests/cuda_host: torch.ops.cnnfast_emulated.
#pragma once

#include <torch/csrc/stable/library.h>

#ifdef CNNFAST_CUDA_EMULATION
#define CNNFAST_NAMESPACE cnnfast_emulated
#define CNNFAST_CUDA_KEY CPU
#else
#define CNNFAST_NAMESPACE cnnfast
#define CNNFAST_CUDA_KEY CUDA
#endif

// torch's macros paste their arguments, so these must have been expanded before.
#define CNNFAST_EXPANDED(macro, ...) macro(__VA_ARGS__)
#define CNNFAST_LIBRARY(m) CNNFAST_EXPANDED(STABLE_TORCH_LIBRARY, CNNFAST_NAMESPACE, m)
#define CNNFAST_LIBRARY_IMPL(key, m) CNNFAST_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, CNNFAST_NAMESPACE, key, m)
