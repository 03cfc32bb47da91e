// The weight gradient of a 3x3 convolution by Winograd: the transpose of F(4x4, 3x3), with as few multiplications.
//
//   dW = G^T [sum over tiles of (B^T d B) * (A dY A^T)] G
//
// One matrix product per element of a tile, [C, tiles] x [tiles, K]. Many tiles are cut into slices, whose number the
// shape decides; each slice's sums are added up over its chunks, and then the slices', in order.
#pragma once

#include "cpu/kernels/winograd_conv2d.h"

namespace cnnfast::CNNFAST_ISA {

// Sums, [panel of K][element][C][kPanelWidth]. Where a panel begins:
static inline int64_t sums_panel(const WinogradConv& conv, int64_t panel) {
  return panel * kWinogradElements * element_pitch(conv.C);
}

// The nine taps of the first `lanes` output channels, for each of kChannels source channels.
template <int kChannels>
CNNFAST_INLINE void store_taps(const Vec<float> (&g)[kChannels][kKernelTaps], int64_t lanes,
                               const GatherWeight<float>& weight, float* to) {
  const auto place = [&](int tap) { return tap / kWinogradTaps * weight.r + tap % kWinogradTaps * weight.s; };
  int tap = 0;
  if (lanes == kLanes<float> && kChannels == kTapChannels && weight.c == 1) {
    for (; tap < kKernelTaps; ++tap)
      store_transposed({g[0][tap], g[1 % kChannels][tap], g[2 % kChannels][tap], g[3 % kChannels][tap]},
                       to + place(tap), weight.m);
  } else if (lanes == kLanes<float> && kChannels == 1 && weight.s == 1 && weight.r == kWinogradTaps) {
    for (; tap + 4 <= kKernelTaps; tap += 4)
      store_transposed({g[0][tap], g[0][tap + 1], g[0][tap + 2], g[0][tap + 3]}, to + tap, weight.m);
  }
  for (; tap < kKernelTaps; ++tap)
    for (int c = 0; c < kChannels; ++c)
      for (int64_t lane = 0; lane < lanes; ++lane) to[lane * weight.m + c * weight.c + place(tap)] = g[c][tap][lane];
}

// grad_weight = G^T sums G of one panel. False if it is not finite.
static bool write_weight(const WinogradConv& conv, const GatherWeight<float>& grad_weight, const float* sums,
                         int64_t panel) {
  constexpr int64_t kLane = kLanes<float>, kWidth = kPanelWidth<float>;
  const int64_t pitch = element_pitch(conv.C);
  Vec<float> probe{};
  for_each_kernel(conv.C, grad_weight.c == 1, [&](int64_t c, auto channels) {
    for (int64_t v = 0; v < kWidth; v += kLane) {
      const int64_t k = panel * kWidth + v, lanes = min(kLane, conv.K - k);
      if (lanes <= 0) break;
      Vec<float> g[channels.value][kKernelTaps];
      unroll<channels.value>([&](auto channel) CNNFAST_INLINE_LAMBDA {
        const float* from = sums + (c + channel.value) * kWidth + v;
        transform_both_ways<WinogradTile::filter().transposed(), false, Vec<float>>(
            [&](int i, int j) CNNFAST_INLINE_LAMBDA { return load_vec(from + (i * kWinogradSize + j) * pitch); },
            [&](int i, int j, Vec<float> value) CNNFAST_INLINE_LAMBDA {
              probe += value - value;  // zero, unless it is not finite
              g[channel.value][i * kWinogradTaps + j] = value;
            });
      });
      store_taps<channels.value>(g, lanes, grad_weight, grad_weight.data + k * grad_weight.m + c * grad_weight.c);
    }
  });
  return !any_lane(probe != Vec<float>{});
}

static void multiply_gradients(const WinogradWeightJob& job, const Chunk& chunk, const PlanPart& part,
                               const WinogradMemory& memory, float* sums, bool accumulate) {
  constexpr int64_t kWidth = kPanelWidth<float>;
  const WinogradConv& conv = job.conv;
  const TilePlanes in(conv.C, job.plan.chunk_tiles), out(job.plan.part_panels * kWidth, job.plan.chunk_tiles);
  const RowPanels rows(conv.C);
  for (int64_t element = 0; element < kWinogradElements; ++element) {
    for (int64_t panel = 0; panel < part.panel_end - part.panel_begin; ++panel) {
      const float* gradients = memory.product + element * out.plane + panel * kWidth;
      float* to = sums + sums_panel(conv, panel) + element * element_pitch(conv.C);
      for (int64_t row = 0; row < rows.count; ++row) {
        const int64_t c = rows.begin(row);
        with_constant<1, kTileRows>(rows.rows(row), [&](auto count) {
          multiply_tile<float, count.value, kTileVectors>(chunk.tiles, memory.source + element * in.plane + c, 1,
                                                          in.pitch, gradients, out.pitch, to + c * kWidth, kWidth,
                                                          accumulate);
        });
      }
    }
  }
}

static bool winograd_backward_weight(const WinogradWeightJob& job, int64_t task, float* shared, float* base) {
  const WinogradConv& conv = job.conv;
  const WinogradPlan& plan = job.plan;
  const PlanPart part(conv, plan, task % plan.parts);
  const int64_t slice = task / plan.parts;
  const int64_t begin = slice * plan.strips / plan.slices, end = (slice + 1) * plan.strips / plan.slices;
  const WinogradMemory memory(conv, plan, 0, base);
  float* sums = memory.shared;
  if (plan.shared_floats > 0) sums = shared + sums_panel(conv, slice * plan.panels + part.panel_begin);
  for (int64_t strip = begin; strip < end; strip += plan.chunk) {
    const Chunk chunk(plan, strip, min(strip + plan.chunk, end));
    transform_source(conv, plan, job.source, chunk, memory.source, memory.staged);
    transform_tiles<WinogradTile::output().transposed()>(
        job.grad_output, conv.P, conv.Q, 0, 0, part.begin, part.end, plan, chunk,
        TilePlanes(plan.part_panels * kPanelWidth<float>, plan.chunk_tiles), memory.product, memory.staged);
    multiply_gradients(job, chunk, part, memory, sums, strip > begin);
  }
  bool finite = true;
  for (int64_t panel = part.panel_begin; plan.shared_floats == 0 && panel < part.panel_end; ++panel)
    finite &= write_weight(conv, job.grad_weight, sums + sums_panel(conv, panel - part.panel_begin), panel);
  return finite;
}

static bool winograd_finish_weight(const WinogradWeightJob& job, int64_t panel, float* sums) {
  sums += sums_panel(job.conv, panel);
  for (int64_t slice = 1; slice < job.plan.slices; ++slice) {
    const float* more = sums + sums_panel(job.conv, slice * job.plan.panels);
    for (int64_t i = 0; i < sums_panel(job.conv, 1); ++i) sums[i] += more[i];
  }
  return write_weight(job.conv, job.grad_weight, sums, panel);
}

static bool winograd_weight_plan(const WinogradConv& conv, int64_t threads, WinogradPlan* plan) {
  // Each chunk reads and writes all sums of its slice and part, which are to stay in the cache.
  constexpr int64_t kChunkTiles = 96, kSliceTiles = 192, kMaxSlices = 16, kBudgetFloats = int64_t{8} << 20;
  constexpr int64_t kPartPanels = 128 / kPanelWidth<float>;
  if (!winograd_pays(conv)) return false;
  cut_tiles(conv, plan);
  const int64_t all_tiles = conv.N * plan->tile_rows * plan->tile_columns, all_sums = sums_panel(conv, plan->panels);
  plan->slices =
      min(min(kMaxSlices, plan->strips), min(kBudgetFloats / all_sums, all_tiles / max(kSliceTiles, conv.C)));
  plan->slices = max(plan->slices, int64_t{1});
  cut_chunks(ceil_div(plan->strips, plan->slices), kChunkTiles, plan);
  cut_parts(max(ceil_div(threads, plan->slices), plan->slices > 1 ? int64_t{1} : plan->panels / kPartPanels), plan);
  plan->shared_floats = plan->slices > 1 ? plan->slices * all_sums : 0;
  const int64_t own = plan->slices > 1 ? 0 : sums_panel(conv, plan->part_panels);
  plan->task_floats = WinogradMemory(conv, *plan, own, nullptr).floats;
  return true;
}

constexpr WinogradConv2dKernels winograd_conv2d_kernels() {
  return {winograd_plan,        winograd_pack_weight,     winograd_forward,
          winograd_weight_plan, winograd_backward_weight, winograd_finish_weight};
}

}  // namespace cnnfast::CNNFAST_ISA
