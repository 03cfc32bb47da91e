// The weight gradient of a 3x3 convolution by Winograd: the transpose of F(4x4, 3x3), with as few multiplications.
//
//   dW = G^T [sum over tiles of (B^T d B) * (A dY A^T)] G
//
// One matrix product per element of a tile, [C, tiles] x [tiles, K], is added up over the chunks of tiles in their
// order.
#pragma once

#include "cpu/kernels/winograd_conv2d.h"

namespace cnnfast::CNNFAST_ISA {

static void winograd_transform_gradient(const WinogradConv& conv, const WinogradPlan& plan,
                                        View<const float> grad_output, int64_t chunk, int64_t task, float* transformed,
                                        float* scratch) {
  const Strip strip(plan, chunk, task / plan.product_tasks);
  const int64_t k = task % plan.product_tasks * kTransformChannels;
  transform_strip<WinogradTile::output().transposed()>(
      grad_output, conv.P, conv.Q, strip, strip.row * kWinogradOutputs, strip.column * kWinogradOutputs, k,
      min(k + kTransformChannels, conv.K), TilePlanes(conv.K, plan.chunk_tiles), transformed, scratch);
}

// Sums, [panel of K][element][C][kPanelWidth]. Where a panel begins:
static inline int64_t sums_panel(const WinogradConv& conv, int64_t panel) {
  return panel * kWinogradElements * element_pitch(conv.C);
}

// grad_weight = G^T sums G of one panel. False if it is not finite.
static bool winograd_finish_weight(const WinogradConv& conv, const GatherWeight<float>& grad_weight, const float* sums,
                                   int64_t panel) {
  constexpr int64_t kLane = kLanes<float>, kWidth = kPanelWidth<float>;
  const int64_t pitch = element_pitch(conv.C);
  const bool dense = grad_weight.s == 1 && grad_weight.r == kWinogradTaps;
  Vec<float> probe{};
  for (int64_t c = 0; c < conv.C; ++c, sums += kWidth) {
    for (int64_t v = 0; v < kWidth; v += kLane) {
      const int64_t k = panel * kWidth + v, lanes = min(kLane, conv.K - k);
      if (lanes <= 0) break;
      Vec<float> g[kKernelTaps];
      transform_both_ways<WinogradTile::filter().transposed(), false, Vec<float>>(
          [&](int i, int j) CNNFAST_INLINE_LAMBDA { return load_vec(sums + (i * kWinogradSize + j) * pitch + v); },
          [&](int i, int j, Vec<float> value) CNNFAST_INLINE_LAMBDA {
            probe += value - value;  // zero, unless it is not finite
            g[i * kWinogradTaps + j] = value;
          });
      float* to = grad_weight.data + k * grad_weight.m + c * grad_weight.c;
      int tap = 0;
      if (dense && lanes == kLane) {
        for (; tap + 4 <= kKernelTaps; tap += 4)
          store_transposed({g[tap], g[tap + 1], g[tap + 2], g[tap + 3]}, to + tap, grad_weight.m);
      }
      for (; tap < kKernelTaps; ++tap)
        for (int64_t lane = 0; lane < lanes; ++lane)
          to[lane * grad_weight.m + tap / kWinogradTaps * grad_weight.r + tap % kWinogradTaps * grad_weight.s] =
              g[tap][lane];
    }
  }
  return !any_lane(probe != Vec<float>{});
}

// Adds the chunk's products to `sums`. With one chunk a task is a panel, whose sums stay in `scratch` and are finished
// at once; else an element and some panels. False if a gradient is not finite.
static bool winograd_multiply_gradient(const WinogradWeightJob& job, int64_t chunk, int64_t task,
                                       const float* transformed, const float* gradients, float* sums, float* scratch) {
  constexpr int64_t kWidth = kPanelWidth<float>;
  const WinogradConv& conv = job.conv;
  const WinogradPlan& plan = job.plan;
  const int64_t tiles = chunk_tiles(plan, chunk), pitch = element_pitch(conv.C);
  const TilePlanes in(conv.C, plan.chunk_tiles), out(conv.K, plan.chunk_tiles);
  const ProductTask part(plan, task);
  const RowPanels rows(conv.C);
  for (int64_t element = part.element_begin; element < part.element_end; ++element) {
    const float* v = transformed + element * in.plane;
    for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
      float* to = (plan.chunks > 1 ? sums + sums_panel(conv, panel) : scratch) + element * pitch;
      for (int64_t row = 0; row < rows.count; ++row) {
        const int64_t c = rows.begin(row);
        with_constant<1, kTileRows>(rows.begin(row + 1) - c, [&](auto count) {
          multiply_tile<float, count.value, kTileVectors>(tiles, v + c, 1, in.pitch,
                                                          gradients + element * out.plane + panel * kWidth, out.pitch,
                                                          to + c * kWidth, kWidth, chunk > 0);
        });
      }
    }
  }
  return plan.chunks > 1 || winograd_finish_weight(conv, job.grad_weight, scratch, task);
}

static bool winograd_weight_plan(const WinogradConv& conv, WinogradPlan* plan) {
  constexpr int64_t kFewTiles = 192;  // each chunk reads and writes all sums
  if (conv.C < 16 || conv.K < 16 || conv.P < 3 || conv.Q < 3 || conv.N == 0) return false;
  cut_tiles(conv, kFewTiles, plan);
  plan->packed_weight = plan->chunks > 1 ? sums_panel(conv, plan->weight_panels) : 0;
  plan->multiply_floats = plan->chunks > 1 ? 0 : sums_panel(conv, 1);
  return true;
}

static bool winograd_finish_panel(const WinogradWeightJob& job, int64_t panel, const float* sums) {
  return winograd_finish_weight(job.conv, job.grad_weight, sums + sums_panel(job.conv, panel), panel);
}

constexpr WinogradConv2dKernels winograd_conv2d_kernels() {
  return {winograd_plan,
          winograd_pack_weight,
          winograd_transform_source,
          winograd_multiply,
          winograd_transform_output,
          winograd_weight_plan,
          winograd_transform_gradient,
          winograd_multiply_gradient,
          winograd_finish_panel};
}

}  // namespace cnnfast::CNNFAST_ISA
