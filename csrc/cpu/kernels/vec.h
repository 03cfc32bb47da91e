// Vec<T>: a register of CNNFAST_VECTOR_BYTES, over the compilers' vector extension.
//
// Included only by isa/*.cpp, which define CNNFAST_ISA (the namespace everything lives in, so that no two
// instruction sets ever share a symbol) and CNNFAST_VECTOR_BYTES. Arithmetic is written with plain operators;
// a * b + c contracts to one FMA where the target has it (-ffp-contract=fast).
#pragma once

#if !defined(CNNFAST_ISA) || !defined(CNNFAST_VECTOR_BYTES)
#error "vec.h is for isa/*.cpp: define CNNFAST_ISA and CNNFAST_VECTOR_BYTES first"
#endif

#include <cstdint>
#include <cstring>

#include "common/number.h"
#include "common/shape.h"

#define CNNFAST_INLINE inline __attribute__((always_inline))

namespace cnnfast::CNNFAST_ISA {

template <class T>
struct VecType {
  typedef T type __attribute__((vector_size(CNNFAST_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecType<T>::type;

template <class T>
constexpr int kLanes = CNNFAST_VECTOR_BYTES / sizeof(T);

// All lanes equal to x. (x - 0 is x for every x, so only the broadcast is left of the subtraction.)
template <class T>
CNNFAST_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// Unaligned load and store of a whole register.
template <class T>
CNNFAST_INLINE Vec<T> load_vec(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
CNNFAST_INLINE void store_vec(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// The first `count` lanes only (0 <= count <= lanes); other lanes read as zero and are not touched in memory.
template <class T>
CNNFAST_INLINE Vec<T> load_partial(const T* p, int64_t count) {
  Vec<T> v{};
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(T));
  return v;
}
template <class T>
CNNFAST_INLINE void store_partial(T* p, Vec<T> v, int64_t count) {
  std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(T));
}

}  // namespace cnnfast::CNNFAST_ISA
