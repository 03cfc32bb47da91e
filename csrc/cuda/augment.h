// Augmentation on CUDA: kernels/augment.cu.
#pragma once

#include "common/augment.h"
#include "cuda/device.h"

namespace cnnfast {

void augment(Cuda, const AugmentPass& pass);

// means[n]: the mean of image n's grey, each grey truncated where the images are of uint8.
void augment_gray_mean(Cuda, const AugmentPass& pass, float* means);

// maps[6 n]: from the output to the source, of image n.
void augment_maps(Cuda, const AugmentPass& pass, double* maps);

}  // namespace cnnfast
