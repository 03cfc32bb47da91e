// Registers of which only some neighbouring lanes may be read.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Lanes [first, last) of a register of floats; either may lie outside it.
class LaneMask {
 public:
  LaneMask(int64_t first, int64_t last) {
    constexpr int64_t kLane = kLanes<float>;
    const auto begin = static_cast<int32_t>(max<int64_t>(0, min(first, kLane)));
    const auto end = static_cast<int32_t>(max<int64_t>(0, min(last, kLane)));
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
    lanes_ = static_cast<__mmask16>(((1u << end) - 1) & ~((1u << begin) - 1));
#else
    Vec<int32_t> lane;
    for (int i = 0; i < kLanes<float>; ++i) lane[i] = i;
    lanes_ = (lane >= broadcast(begin)) & (lane < broadcast(end));
#endif
  }
  // Zero in the other lanes, whose memory is not read.
  CNNFAST_INLINE Vec<float> load(const float* p) const {
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
    return _mm512_maskz_loadu_ps(lanes_, p);
#elif defined(__AVX2__) && CNNFAST_VECTOR_BYTES == 32
    return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(lanes_));
#else
    Vec<float> v{};
    for (int i = 0; i < kLanes<float>; ++i)
      if (lanes_[i] != 0) v[i] = p[i];
    return v;
#endif
  }

 private:
#if defined(__AVX512F__) && CNNFAST_VECTOR_BYTES == 64
  __mmask16 lanes_;
#else
  Vec<int32_t> lanes_;
#endif
};

}  // namespace cnnfast::CNNFAST_ISA
