// Contract of the kernels of batch normalisation: bodies in kernels/batch_norm.h, launchers in batch_norm.cpp.
#pragma once

#include "common/batch_norm.h"
#include "cpu/device.h"

namespace cnnfast {

// What becomes of an element of channel c: activation(input * scale[c] + shift[c] + residual).
template <class T>
struct BatchNormApply {
  const T *input, *residual;  // null: no residual
  const Compute<T>*scale, *shift;
  Activation activation;
  T* output;
};

// The gradient that reaches the sum is grad_output where the activation has let the sum pass: known from `output`, or
// else computed again. (Of which grad_input is gradient * scale[c] + (input - mean[c]) * slope[c] + offset[c].)
template <class T>
struct BatchNormGradient {
  const T *grad_output, *input, *output;  // output: null: computed again
  const Compute<T>*scale, *shift, *mean, *slope, *offset;
  Activation activation;
  T *grad_residual, *grad_input;
};

template <class T>
struct BatchNormKernels {
  // Of each channel of a piece the mean, and the sum of the squares of what is left without it.
  void (*statistics)(const BatchNormShape&, const BatchNormPiece&, const T* input, double* mean, double* squares);
  void (*apply)(const BatchNormShape&, const BatchNormPiece&, const BatchNormApply<T>&);
  // Of each channel the sums of the gradient and of gradient * (input - mean); the gradient itself to grad_residual,
  // unless that is null.
  void (*sums)(const BatchNormShape&, const BatchNormPiece&, const BatchNormGradient<T>&, double* gradient,
               double* product);
  void (*gradient)(const BatchNormShape&, const BatchNormPiece&, const BatchNormGradient<T>&);
};

// On all threads.
template <class T>
void batch_norm_forward(Cpu, const BatchNormForward<T>& args);
template <class T>
void batch_norm_backward(Cpu, const BatchNormBackward<T>& args);

}  // namespace cnnfast
