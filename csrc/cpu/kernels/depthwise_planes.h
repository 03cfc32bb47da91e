// Depthwise convolution of float32 in NCHW and its gradients, a plane at a time (depthwise_columns.h).
#pragma once

#include "cpu/depthwise_conv2d.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/depthwise_axes.h"
#include "cpu/kernels/depthwise_columns.h"
#include "cpu/kernels/depthwise_columns_weight.h"
#include "cpu/kernels/epilogue.h"

namespace cnnfast::CNNFAST_ISA {

// A plane's rows [top, top + rows) of part 0, and as far as there are any of other parts, of an output of H x W whose
// row 0 is at `out`. `weight` is the channel's.
static void depthwise_plane(const DepthwiseAxes& axes, const DepthwiseSource<float>& source, const float* weight,
                            Activation activation, float* out, int64_t pitch, int64_t W, int64_t top, int64_t rows) {
  for (int64_t a = 0; a < axes.h.parts; ++a) {
    const GatherAxis& h = axes.h.part[a];
    DepthwiseColumns part[2];
    for (int64_t b = 0; b < axes.w.parts; ++b) {
      const GatherAxis& w = axes.w.part[b];
      part[b] = {source.moved(top * axes.h.step + h.origin, w.origin),
                 w.taps,
                 weight,
                 activation,
                 out + (top * axes.h.parts + a) * pitch,
                 axes.h.parts * pitch,
                 min(rows, h.outputs - top),
                 w.outputs};
      weight += 1 + h.taps * w.taps;
    }
    if (axes.w.parts == 2) {
      depthwise_columns_pairs(h.taps, part[0], part[1], W);
    } else {
      depthwise_columns_rows(h.taps, axes.h.step, part[0]);
    }
  }
}

static DepthwiseSource<float> plane_source(View<const float> image, int64_t n, int64_t c, int64_t H, int64_t W) {
  return {image.at(n, c, 0, 0), image.stride.h, 1, 0, 0, H, W};
}

// The forward pass, or the input gradient alone: a task is a slice of the bands of all planes.
static void depthwise_planes(const DepthwiseGather<float>& job, int64_t task) {
  const Conv2dShape& s = job.conv;
  const DepthwisePlan& plan = job.plan;
  const DepthwiseAxes axes(s, job.input_gradient);
  const bool backward = job.input_gradient;
  const int64_t H = backward ? s.H : s.P, W = backward ? s.W : s.Q, units = s.N * s.C * plan.bands;
  for (int64_t unit = task * units / plan.slices; unit < (task + 1) * units / plan.slices; ++unit) {
    const int64_t n = unit / plan.bands / s.C, c = unit / plan.bands % s.C, top = unit % plan.bands * plan.band;
    const int64_t rows = min(plan.band, axes.h.outputs - top), first = top * axes.h.parts;
    depthwise_plane(axes, plane_source(job.source, n, c, backward ? s.P : s.H, backward ? s.Q : s.W),
                    job.packed_weight + c * axes.packed_size, job.epilogue.clip(), job.output.at(n, c, 0, 0),
                    job.output.stride.h, W, top, rows);
    finish_box(job.epilogue, job.output, {n, c, 1, first, min(rows * axes.h.parts, H - first), 0, W});
  }
}

// All gradients: a task is a group of channels, whose sums are [channel][tap or, last, bias].
static void depthwise_planes_backward(const DepthwiseBackward<float>& job, int64_t task, float* sums) {
  const Conv2dShape& s = job.conv;
  const DepthwiseAxes axes(s, true);
  const int64_t taps = s.R * s.S;
  float columns[kMostDepthwiseTaps];  // the taps' sums, column by column
  for (int64_t c = task * s.C / job.plan.groups; c < (task + 1) * s.C / job.plan.groups; ++c) {
    for (float& sum : columns) sum = 0;
    float* total = sums + c * (taps + 1);
    total[taps] = 0;
    for (int64_t n = 0; n < s.N; ++n) {
      const DepthwiseSource<float> dy = plane_source(job.grad_output, n, c, s.P, s.Q);
      if (job.grad_input.data != nullptr) {
        depthwise_plane(axes, dy, job.packed_weight + c * axes.packed_size, Activation::none,
                        job.grad_input.at(n, c, 0, 0), job.grad_input.stride.h, s.W, 0, axes.h.outputs);
      }
      if (job.want_weight) {
        const DepthwiseSource<float> x = plane_source(job.input, n, c, s.H, s.W).moved(-s.pad_top, -s.pad_left);
        depthwise_columns_weight(s.R, s.stride_h, {x, s.S, dy.data, dy.pitch, s.P, s.Q}, columns);
      }
      if (!job.want_bias) continue;
      for (int64_t p = 0; p < s.P; ++p) {
        const float* row = dy.data + p * dy.pitch;
        Vec<float> sum{};
        int64_t q = 0;
        for (; q + kLanes<float> <= s.Q; q += kLanes<float>) sum += load_vec(row + q);
        if (q < s.Q) sum += load_partial(row + q, s.Q - q);
        total[taps] += lane_sum(sum);
      }
    }
    for (int64_t tap = 0; tap < taps; ++tap) total[tap] = columns[tap % s.S * s.R + tap / s.S];
  }
}

// Whether planes are convolved by columns, and the plan of the forward pass or of the input gradient alone.
static bool depthwise_planes_plan(const Conv2dShape& s, const DepthwiseAxes& axes, DepthwisePlan* plan) {
  // Rows that leave registers empty are better off in a slab.
  const bool full = s.Q >= 8 && 3 * s.Q >= 2 * round_up(s.Q, kLanes<float>);
  if (!full || s.stride_h != s.stride_w) return false;
  const int64_t planes = s.N * s.C, products = s.P * s.Q * s.R * s.S;
  *plan = {};
  plan->by_columns = true;
  plan->rows = max<int64_t>(axes.h.outputs, 1);
  plan->band = band_of(plan->rows, planes, products / plan->rows, [](int64_t) { return true; });
  plan->bands = ceil_div(plan->rows, plan->band);
  const int64_t wanted = max<int64_t>(1, min(kMostDepthwiseTasks, planes * products / kDepthwiseTaskProducts));
  plan->slices = max<int64_t>(1, min(planes * plan->bands, wanted));
  plan->groups = 1;
  plan->packed_weight = s.C * axes.packed_size;
  return true;
}

// The plan of all gradients.
static bool depthwise_planes_backward_plan(const Conv2dShape& s, const DepthwiseAxes& axes, DepthwisePlan* plan) {
  if (!depthwise_planes_plan(s, axes, plan)) return false;
  plan->groups = min(s.C, plan->slices);
  plan->slices = plan->bands = 1;
  plan->band = plan->rows;
  plan->sums = s.C * (s.R * s.S + 1);
  return true;
}

// For each channel and each part: bias, then the taps column by column.
static void pack_depthwise_planes(const Conv2dShape& s, const DepthwiseAxes& axes, View<const float> weight,
                                  const float* bias, float* packed) {
  for (int64_t c = 0; c < s.C; ++c) {
    for (int64_t a = 0; a < axes.h.parts; ++a) {
      const GatherAxis& h = axes.h.part[a];
      for (int64_t b = 0; b < axes.w.parts; ++b) {
        const GatherAxis& w = axes.w.part[b];
        *packed++ = bias != nullptr ? bias[c] : 0;
        for (int64_t j = 0; j < w.taps; ++j)
          for (int64_t i = 0; i < h.taps; ++i)
            *packed++ = *weight.at(c, 0, h.first_tap + i * h.tap_stride, w.first_tap + j * w.tap_stride);
      }
    }
  }
}

static void finish_depthwise_planes(const Conv2dShape& s, const float* sums, View<float> grad_weight,
                                    float* grad_bias) {
  const int64_t taps = s.R * s.S;
  for (int64_t c = 0; c < s.C; ++c, sums += taps + 1) {
    if (grad_weight.data != nullptr)
      for (int64_t tap = 0; tap < taps; ++tap) *grad_weight.at(c, 0, tap / s.S, tap % s.S) = sums[tap];
    if (grad_bias != nullptr) grad_bias[c] = sums[taps];
  }
}

}  // namespace cnnfast::CNNFAST_ISA
