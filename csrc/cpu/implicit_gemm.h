// Algorithm `implicit_gemm`, for every shape: splits one convolution into tasks, gives them threads and scratch. Views
// in any layout; weight is viewed as (n, c, h, w) = (K, C/G, R, S).
#pragma once

#include "common/activation.h"
#include "common/number.h"
#include "common/shape.h"

namespace cnnfast {

// bias [K] may be null. `kept` are weights that implicit_gemm_pack has packed, for this shape or another: what does not
// fit is not used. Null: there are none.
template <class T>
void implicit_gemm_forward(const Conv2dShape& shape, View<const T> input, View<const T> weight, const T* bias,
                           const Epilogue<T>& epilogue, View<T> output, const float* kept = nullptr);

// Packs weights for many calls; into as many floats, which are aligned as registers are.
int64_t implicit_gemm_packed_floats(const Conv2dShape& shape, const Strides& input, const Strides& output);
void implicit_gemm_pack(const Conv2dShape& shape, const Strides& input, const Strides& output, View<const float> weight,
                        float* packed);

// Also the forward pass of the transposed convolution, whose bias [C] may be null.
template <class T>
void implicit_gemm_backward_input(const Conv2dShape& shape, View<const T> grad_output, View<const T> weight,
                                  const T* bias, View<T> grad_input);

template <class T>
void implicit_gemm_backward_weight(const Conv2dShape& shape, View<const T> input, View<const T> grad_output,
                                   View<T> grad_weight);

// grad_bias[k] = sum of grad_output [N, K, P, Q] over n, p and q.
template <class T>
void sum_over_pixels(int64_t N, int64_t K, int64_t P, int64_t Q, View<const T> grad_output, T* grad_bias);

}  // namespace cnnfast
