// augment, augment_gray_mean and augment_maps on the CPU: an image is a task.
#include "ops/augment.h"

#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/guard.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

template <class Body>
void for_each_image(const AugmentPass& pass, const Body& body) {
  const int64_t scratch = augment_scratch(pass);
  parallel_tasks(pass.N, [&](int64_t n) {
    Workspace workspace(Workspace::needed<float>(scratch));
    body(n, workspace.take<float>(scratch));
  });
}

}  // namespace

void augment(Cpu, const AugmentPass& pass) {
  for_each_image(pass, [&](int64_t n, float* scratch) { cpu_kernels().augment.image(pass, n, scratch); });
}

void augment_gray_mean(Cpu, const AugmentPass& pass, float* means) {
  for_each_image(pass, [&](int64_t n, float* scratch) { cpu_kernels().augment.gray_mean(pass, n, means, scratch); });
}

// Not for a loop that anything waits for: it moves boxes.
void augment_maps(Cpu, const AugmentPass& pass, double* maps) {
  for (int64_t n = 0; n < pass.N; ++n) {
    ImageMaps image;
    find_maps(pass, n, image);
    std::memcpy(maps + 6 * n, &image.maps[0], sizeof(AffineMap));
  }
}

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("augment", TORCH_BOX(&augment_op<Cpu>));
  m.impl("augment_gray_mean", TORCH_BOX(&augment_gray_mean_op<Cpu>));
  m.impl("augment_maps", TORCH_BOX(&augment_maps_op<Cpu>));
}

}  // namespace cnnfast
