// Contract of the augmentation kernels: bodies in kernels/augment.h, launchers in augment.cpp.
#pragma once

#include "common/augment.h"
#include "cpu/device.h"

namespace cnnfast {

struct AugmentKernels {
  // Image n of the pass. `scratch` holds augment_scratch elements.
  void (*image)(const AugmentPass& pass, int64_t n, float* scratch);
  // means[n]: the mean of image n's grey, each grey truncated where input_type is uint8. `scratch` holds
  // augment_scratch elements.
  void (*gray_mean)(const AugmentPass& pass, int64_t n, float* means, float* scratch);
};

// Whether a step reads several channels of a pixel.
static constexpr bool mixes_channels(const AugmentPass& pass) {
  for (int64_t i = 0; i < pass.point_count; ++i)
    if (pass.points[i].kind == PointKind::gray || pass.points[i].kind == PointKind::saturation) return true;
  return false;
}

// How an image is cut: channels that are sampled together, rows that go through the point steps together; and where
// their elements are in the scratch. A source plane has a pixel around it, and one more at the end, which is read with
// weight zero.
struct AugmentTiles {
  static constexpr int64_t kPlanesBytes = 256 << 10, kBandElements = 1024, kSlack = 64;

  int64_t channels, rows, plane_stride, plane, band;

  explicit constexpr AugmentTiles(const AugmentPass& pass)
      : rows(max(int64_t{1}, min(pass.P, kBandElements / max(pass.Q, int64_t{1})))),
        plane_stride(pass.W + 3),
        plane(pass.geometry_count == 0 ? 0 : (pass.H + 3) * plane_stride + kSlack),
        band(round_up(rows * max(pass.Q, pass.W), kSlack) + kSlack) {
    const bool together = mixes_channels(pass) || pass.C * plane * 4 <= kPlanesBytes;
    channels = together ? pass.C : 1;
  }
};

static constexpr int64_t augment_scratch(const AugmentPass& pass) {
  const AugmentTiles tiles(pass);
  return tiles.channels * (tiles.plane + tiles.band);
}

// On all threads.
void augment(Cpu, const AugmentPass& pass);
void augment_gray_mean(Cpu, const AugmentPass& pass, float* means);

// maps[6 n]: from the output to the source, of image n.
void augment_maps(Cpu, const AugmentPass& pass, double* maps);

}  // namespace cnnfast
