// The fused op's kernel table, and the choice of the direct forward's body.
#pragma once

#include "cpu/kernels/bands.h"
#include "cpu/kernels/direct_channels.h"
#include "cpu/kernels/direct_map.h"
#include "cpu/kernels/direct_width.h"
#include "cpu/kernels/pool_sparse_backward.h"
#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/winograd_pool.h"

namespace cnnfast::CNNFAST_ISA {

// Input of a task, in bytes: what stays in the first cache levels beside the weights. And of a task that keeps its part
// of the map as well, both.
constexpr int64_t kBandBytes = 64 << 10;
constexpr int64_t kMapBandBytes = 256 << 10;

static bool direct_plan(const Conv2dShape& conv, const Pool2dShape& pool, bool may_winograd, DirectPlan* plan) {
  if (conv.G != 1 || conv.C == 0 || conv.C * conv.R * conv.S > 64 * 9) return false;  // beyond, implicit GEMM is ahead
  const int64_t lanes = kLanes<float>;
  // ceil_mode may add a window that hangs over the edge.
  const bool two_by_two = pool.R == 2 && pool.S == 2 && pool.stride_h == 2 && pool.stride_w == 2 && pool.pad_h == 0 &&
                          pool.pad_w == 0 && pool.dilation_h == 1 && pool.dilation_w == 1 && 2 * pool.P <= conv.P &&
                          2 * pool.Q <= conv.Q;
  const bool unit_step = conv.stride_h == 1 && conv.stride_w == 1 && conv.dilation_h == 1 && conv.dilation_w == 1;
  // The share of lanes each body would waste decides; at a tie the channels body, which needs fewer loads.
  const bool width = unit_step && round_up(pool.Q, lanes) * conv.K < round_up(conv.K, lanes) * pool.Q;
  // Winograd's transforms are shared by the channels on the other side: they pay from a register of those on.
  const bool winograd = may_winograd && unit_step && conv.R == 3 && conv.S == 3 && conv.C >= 8 && conv.K >= 8;
  plan->body = !two_by_two ? DirectBody::map
               : winograd  ? DirectBody::winograd
               : width     ? DirectBody::width
                           : DirectBody::channels;
  // Not where most of the map's registers would be empty, or rows that no window reads be computed.
  if (plan->body == DirectBody::map && (2 * conv.K < round_up(conv.K, lanes) || 2 * conv.Q < kMostMapPixels ||
                                        pool.stride_h > (pool.R - 1) * pool.dilation_h + 1))
    return false;

  const auto input_floats = [&](int64_t band) {
    switch (plan->body) {
      case DirectBody::channels:
        return conv.C * pooled_input(conv, pool, band).plane();
      case DirectBody::map:
        return MapBand::input_floats(conv, pool, band) + MapBand::map_floats(conv, pool, band);
      default:
        return conv.C * width_input(conv, pool, band).plane();
    }
  };
  const int64_t budget = plan->body == DirectBody::map ? kMapBandBytes : kBandBytes;
  const int64_t products_per_row = pool.stride_h * conv.Q * conv.K * conv.C * conv.R * conv.S;
  // Of the map's body, neighbouring bands both compute the rows that their windows share: no more of them than the
  // cache asks for, and a quarter more rows at most.
  const bool map = plan->body == DirectBody::map;
  const int64_t band = band_of(pool.P, map ? kTasks : conv.N, products_per_row,
                               [&](int64_t rows) { return input_floats(rows) * 4 <= budget; });
  if (map && band < pool.P && 4 * MapBand::most_rows(conv, pool, band) > 5 * band * pool.stride_h) return false;
  plan->band = band;
  plan->bands = ceil_div(pool.P, band);
  const int64_t channels = plan->body == DirectBody::width ? conv.K : round_up(conv.K, lanes);
  plan->packed_weight = channels * (1 + conv.C * (plan->body == DirectBody::winograd ? kTransformed : conv.R * conv.S));
  const int64_t pooled_bytes = round_up(band * pool.Q * channels, 16) * 5;  // values and codes
  switch (plan->body) {
    case DirectBody::channels:
      plan->workspace_bytes = round_up(input_floats(band), 16) * 4 + pooled_bytes;
      break;
    case DirectBody::width:
      plan->workspace_bytes = round_up(input_floats(band), 16) * 4 + WidthOutput::staged_bytes(pool, band);
      break;
    case DirectBody::map:
      plan->workspace_bytes = round_up(MapBand::input_floats(conv, pool, band), 16) * 4 +
                              round_up(MapBand::map_floats(conv, pool, band), 16) * 4 + pooled_bytes;
      break;
    case DirectBody::winograd:
      plan->workspace_bytes = WinogradScratch(nullptr, conv, pool, band).bytes;
      break;
  }
  return true;
}

static void direct_pack_weight(const Conv2dShape& conv, const DirectPlan& plan, View<const float> weight,
                               const float* bias, float* packed) {
  switch (plan.body) {
    case DirectBody::channels:
    case DirectBody::map:
      return pack_channels(conv, weight, bias, packed);
    case DirectBody::width:
      return pack_width(conv, weight, bias, packed);
    case DirectBody::winograd:
      return pack_winograd(conv, weight, bias, packed);
  }
}

static void direct_forward(const DirectForward& job, int64_t n, int64_t band_index, char* workspace) {
  const bool with_code = job.code.data != nullptr;
  const int64_t top = band_index * job.plan.band, rows = min(job.plan.band, job.pool.P - top);
  prefetch_for_writing(job.output, n, job.conv.K, top, rows, job.pool.Q);
  if (with_code) prefetch_for_writing(job.code, n, job.conv.K, top, rows, job.pool.Q);
  switch (job.plan.body) {
    case DirectBody::channels:
      return (with_code ? direct_channels<true> : direct_channels<false>)(job, n, band_index, workspace);
    case DirectBody::width:
      return (with_code ? direct_width<true> : direct_width<false>)(job, n, band_index, workspace);
    case DirectBody::map:
      return (with_code ? direct_map<true> : direct_map<false>)(job, n, band_index, workspace);
    case DirectBody::winograd:
      return winograd_pool(job, n, band_index, workspace);
  }
}

constexpr ConvReluMaxPool2dKernels conv2d_relu_max_pool2d_kernels() {
  return {direct_plan, direct_pack_weight,     direct_forward,      sparse_takes,
          sparse_row,  sparse_workspace_bytes, pool_sparse_backward};
}

}  // namespace cnnfast::CNNFAST_ISA
