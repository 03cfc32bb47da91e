// Batch normalisation by the statistics of the batch: arguments of the kernels, and how a tensor is cut into pieces.
//
//   output = activation((input - mean) * invstd * weight + bias + residual)
#pragma once

#include "common/activation.h"
#include "common/number.h"
#include "common/shape.h"

namespace cnnfast {

// Some rows of one image, of some channels: neighbours of one channel in NCHW, pixels of all channels in channels_last,
// where the whole batch counts as one image.
struct BatchNormPiece {
  int64_t segment;
  int64_t image, row, rows, c, channels;
};

// A dense [N, C, H, W] tensor. It is cut into segments, of which sums are taken apart, by its shape alone: results do
// not depend on the number of threads.
struct BatchNormShape {
  int64_t C;
  bool channels_last;
  int64_t images, rows;  // N and H * W, or 1 and N * H * W
  int64_t size, parts;   // rows in a segment, segments in an image
  int64_t block;         // channels in a piece

  CNNFAST_INLINE BatchNormShape(int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last)
      : C(C), channels_last(channels_last || H * W == 1), images(this->channels_last ? 1 : N) {
    constexpr int64_t kElements = 1 << 15, kMostParts = 256;
    rows = this->channels_last ? N * H * W : H * W;
    size = this->channels_last ? max(ceil_div(kElements, max(C, int64_t{1})), ceil_div(rows, kMostParts)) : kElements;
    size = max(min(size, rows), int64_t{1});
    parts = ceil_div(rows, size);
    block = this->channels_last ? C : min(C, ceil_div(kElements, size));
  }

  CNNFAST_INLINE int64_t segments() const { return images * parts; }
  CNNFAST_INLINE int64_t pieces() const { return C == 0 ? 0 : segments() * ceil_div(C, block); }
  CNNFAST_INLINE int64_t count() const { return images * rows; }  // elements of a channel

  CNNFAST_INLINE BatchNormPiece piece(int64_t index) const {
    const int64_t blocks = ceil_div(C, block), segment = index / blocks, c = index % blocks * block;
    const int64_t row = segment % parts * size;
    return {segment, segment / parts, row, min(size, rows - row), c, min(block, C - c)};
  }
  CNNFAST_INLINE int64_t rows_of(int64_t segment) const { return min(size, rows - segment % parts * size); }
};

// Sums are kept, and parameters given, in the type that the input is computed in.
template <class T>
struct BatchNormForward {
  BatchNormShape shape;
  const T *input, *residual;              // null: no residual
  const Compute<T>*weight, *bias;         // null: ones, zeros
  Compute<T>*running_mean, *running_var;  // null: not tracked
  double momentum, eps;
  Activation activation;  // one that only clips
  T* output;
  Compute<T>*mean, *invstd, *shift;  // sum = input * (weight * invstd) + shift + residual
};

// What is not wanted is null.
template <class T>
struct BatchNormBackward {
  BatchNormShape shape;
  const T *grad_output, *input, *output;  // output: null unless a residual was added and clipped with the rest
  const Compute<T>*weight, *mean, *invstd, *shift;
  Activation activation;
  T *grad_input, *grad_residual;
  Compute<T>*grad_weight, *grad_bias;
};

// A sample, for its mean and variance: T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample
// variance, The American Statistician 37, 1983.
struct Sample {
  double count, mean, squares;  // squares: of what is left without the mean

  CNNFAST_INLINE void add(const Sample& other) {
    const double total = count + other.count, distance = other.mean - mean;
    mean += distance * (other.count / total);
    squares += other.squares + distance * distance * (count * other.count / total);
    count = total;
  }
};

}  // namespace cnnfast
