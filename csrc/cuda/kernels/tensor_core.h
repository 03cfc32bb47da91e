// Instructions of compute capability 8.0 and later that C++ has no words for: products of small matrices on tensor
// cores (mma.sync), their operands out of shared memory (ldmatrix), copies that go on beside the program (cp.async).
// All of them take whole warps without divergence. The emulation has its own, by the layouts that the PTX ISA gives.
//
// A fragment is a warp's matrix, in 32-bit registers of one 32-bit or two 16-bit elements, lower half first. With
// g = lane / 4 and t = lane % 4, of a 16 x k matrix A, where a step of k is 32 bytes (16 or 8 elements) and E elements
// fill a register, register 0 holds row g from column E * t on, 1 row g + 8, 2 row g from column 4 * E + E * t on, 3
// row g + 8 of those. B [k, 8] has in register 0 column g from row E * t on, in 1 from row 4 * E + E * t on. The 16 x 8
// sums are 0 and 1 in row g, columns 2 * t and 2 * t + 1, 2 and 3 the same of row g + 8.
#pragma once

#include "cuda/kernels/launch.h"

namespace cnnfast {

// A float of tf32's ten bits of mantissa.
struct tf32 {
  uint32_t bits;
};

// What tensor cores multiply for a storage type: float loses 13 bits of its mantissa.
template <class T>
struct TensorElementOf {
  using type = T;
};
template <>
struct TensorElementOf<float> {
  using type = tf32;
};
template <class T>
using TensorElement = typename TensorElementOf<T>::type;

// Whether the code being compiled may use them: a kernel that does is empty for earlier devices, and never run there.
#if defined(CNNFAST_CUDA_EMULATION) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define CNNFAST_TENSOR_CORES 1
#define CNNFAST_ASM(...) asm(__VA_ARGS__)
#define CNNFAST_ASM_VOLATILE(...) asm volatile(__VA_ARGS__)  // keeps its order among barriers
#else
#define CNNFAST_TENSOR_CORES 0
#pragma nv_diag_suppress 177  // what only such kernels use, nobody uses
#define CNNFAST_ASM(...) __trap()
#define CNNFAST_ASM_VOLATILE(...) __trap()
#endif

}  // namespace cnnfast

#ifdef CNNFAST_CUDA_EMULATION
#include "tensor_core_emulation.h"
#else
namespace cnnfast {

#define CNNFAST_MMA(shape_and_types, D, A, B0, B1)                                                                   \
  CNNFAST_ASM("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
              : "+f"(D[0]), "+f"(D[1]), "+f"(D[2]), "+f"(D[3])                                                       \
              : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(B0), "r"(B1))

// sums += A B
CNNFAST_DEVICE void multiply(tf32, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  CNNFAST_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", sums, a, b0, b1);
}
CNNFAST_DEVICE void multiply(float16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  CNNFAST_MMA("m16n8k16.row.col.f32.f16.f16.f32", sums, a, b0, b1);
}
CNNFAST_DEVICE void multiply(bfloat16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  CNNFAST_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", sums, a, b0, b1);
}
#undef CNNFAST_MMA

// Of a float's bits. Rounds to nearest, ties away from zero.
CNNFAST_DEVICE uint32_t to_tf32(uint32_t bits) {
  uint32_t result = 0;
  CNNFAST_ASM("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(__uint_as_float(bits)));
  return result;
}

CNNFAST_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Four matrices of 8 rows of 16 bytes in shared memory: lane i gives the place of row i % 8 of matrix i / 8, 16-byte
// aligned. Result r of a lane is of matrix r: row g, the four bytes from 4 * t on.
CNNFAST_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  CNNFAST_ASM_VOLATILE("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                       : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                       : "r"(shared_address(row))
                       : "memory");
}
// The same of the transposes, as matrices of 8 x 8 16-bit elements.
CNNFAST_DEVICE void load_transposed_matrices(uint32_t (&r)[4], const void* row) {
  CNNFAST_ASM_VOLATILE("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                       : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                       : "r"(shared_address(row))
                       : "memory");
}

// 16 bytes into shared memory, both places aligned to them; zeros if not `present`, but `from` must be an address.
CNNFAST_DEVICE void copy_async(void* to, const void* from, bool present) {
  CNNFAST_ASM_VOLATILE("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                       "r"(present ? 16 : 0)
                       : "memory");
}
// Closes this thread's group of copies, also an empty one.
CNNFAST_DEVICE void commit_copies() { CNNFAST_ASM_VOLATILE("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the kPending latest groups of this thread are on their way. Others see the copies after a
// barrier.
template <int kPending>
CNNFAST_DEVICE void wait_for_copies() {
  CNNFAST_ASM_VOLATILE("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace cnnfast
#endif
