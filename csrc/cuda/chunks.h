// Images as kernels on tensor cores read them: pixel by pixel, the channels of one side by side, each group's in whole
// chunks of 16 bytes. A channels_last tensor with fitting channels is one as it stands; others are copied.
#pragma once

#include "common/number.h"
#include "cuda/device.h"

namespace cnnfast {

constexpr int64_t kChunkBytes = 16;

// Channel c of group g of pixel (n, h, w) is data[n * this->n + h * this->h + w * this->w + g * group + c].
template <class T>
struct Chunks {
  const T* data;
  int64_t n, h, w, group;  // in elements, multiples of a chunk
};

// X(T) for each type that tensor cores multiply.
#define CNNFAST_FOR_EACH_TENSOR_TYPE(X) X(float) X(bfloat16) X(float16)

// Of a [N, G * C, H, W] view; `dense`: pixels must follow each other at the same distance, through all images.
template <class T>
Chunks<T> chunks_of(const char* name, Cuda device, View<const T> view, int64_t N, int64_t G, int64_t C, int64_t H,
                    int64_t W, bool dense = false);

}  // namespace cnnfast
