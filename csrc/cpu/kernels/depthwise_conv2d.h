// Depthwise convolution + bias + clamp, and its input gradient, which is the same computation over grad_output (see
// common/gather_conv.h): with a stride of 2, one for each parity of row and column.
//
//   output[c][i][j] = bias[c] + sum over r, s of weight[c][r][s] * source[c][i * step + r][j * step + s]   (padded)
//
// Every channel of a block is copied to a slab first (depthwise_slab.h). A tile is 4 rows of one register: of each
// column of taps it holds the weights, and loads what several of the rows share once.
#pragma once

#include "common/gather_conv.h"
#include "cpu/depthwise_conv2d.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/depthwise_slab.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kDepthwiseRows = 4;
constexpr int64_t kDepthwiseMaxSize = 7;
// A unit's slab is to stay in the first cache level; a band of all channels, where they lie together, in the second.
constexpr int64_t kDepthwiseSlabBytes = 64 << 10, kDepthwiseBandBytes = 384 << 10;

// One axis of the gathers: output i * parts + a is output i of part a. Source coordinates from i * step + low to
// i * step + reach belong to output i of any part; to the input gradient's also coordinate i itself.
struct DepthwiseAxis {
  GatherAxis part[2] = {};
  int64_t parts, outputs, step, low, reach;

  DepthwiseAxis(bool input_gradient, int64_t input, int64_t output, int64_t stride, int64_t padding, int64_t kernel)
      : parts(input_gradient ? stride : 1), step(input_gradient ? 1 : stride) {
    for (int64_t a = 0; a < parts; ++a)
      part[a] = input_gradient ? backward_axis(input, output, stride, padding, 1, kernel, a)
                               : forward_axis(input, output, stride, padding, 1, kernel);
    outputs = part[0].outputs;
    low = input_gradient ? min<int64_t>(0, part[0].origin) : part[0].origin;
    reach = input_gradient ? 0 : low;
    for (int64_t a = 0; a < parts; ++a) {
      low = min(low, part[a].origin);
      reach = max(reach, part[a].origin + part[a].taps - 1);
    }
  }
  // Source coordinates that `count` outputs of each part meet.
  int64_t span(int64_t count) const { return (count - 1) * step + reach - low + 1; }
};

struct DepthwiseAxes {
  DepthwiseAxis h, w;

  DepthwiseAxes(const Conv2dShape& s, bool input_gradient)
      : h(input_gradient, s.H, s.P, s.stride_h, s.pad_top, s.R),
        w(input_gradient, s.W, s.Q, s.stride_w, s.pad_left, s.S) {}
  int64_t packed_size(const Conv2dShape& s) const { return h.parts * w.parts + s.R * s.S; }
};

// Source rows of a band, and its results, as slabs; and where each lies in the workspace.
template <class A>
struct DepthwiseScratch {
  Slab source, result;
  int64_t source_columns, source_rows;
  A *source_data, *result_data, *weight;
  int64_t bytes = 0;

  DepthwiseScratch(const Conv2dShape& s, const DepthwisePlan& plan, const DepthwiseAxes& axes, bool input_gradient,
                   char* memory) {
    source_rows = axes.h.span(plan.band);
    source_columns = axes.w.span(axes.w.outputs);
    if (input_gradient) source_columns = max(source_columns, round_up(s.Q, plan.block > 1 ? 1 : kLanes<A>) - axes.w.low);
    source = make_slab<A>(plan.block, axes.w.step - 1, source_columns);
    result = make_slab<A>(plan.block, axes.w.parts - 1, axes.w.outputs * axes.w.parts);
    source_data = take(memory, source_rows * source.pitch);
    result_data = take(memory, plan.band * axes.h.parts * result.pitch);
    weight = take(memory, axes.packed_size(s) * kLanes<A>);
  }
  A* take(char* memory, int64_t count) {
    A* piece = reinterpret_cast<A*>(memory + bytes);
    bytes += round_up((count + kLanes<A>)*static_cast<int64_t>(sizeof(A)), 64);
    return piece;
  }
};

// `count` registers in each of some rows of one part.
template <class A>
struct DepthwiseRows {
  const A* x;
  int64_t x_pitch, x_step;
  const int64_t* taps;  // where each column of taps begins
  int64_t S;
  const A* weight;  // bias, then by column of taps, in registers
  A low, high;
  A* out;
  int64_t out_pitch, out_step;
  int64_t rows, registers;
  int64_t x_last, out_last;  // where the last register begins: it may overlap its neighbour
};

template <int kR, int kStep, int kRows, class A>
CNNFAST_INLINE void depthwise_tile(const DepthwiseRows<A>& job, const A* x, A* out) {
  Vec<A> sum[kRows];
  const A* w = job.weight;
  unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA { sum[t.value] = load_vec(w); });
  for (int64_t s = 0; s < job.S; ++s) {
    const A* row = x + job.taps[s];
    Vec<A> weight[kR];
    unroll<kR>([&](auto r) CNNFAST_INLINE_LAMBDA { weight[r.value] = load_vec(w += kLanes<A>); });
    unroll<(kRows - 1) * kStep + kR>([&](auto i) CNNFAST_INLINE_LAMBDA {
      const Vec<A> value = load_vec(row);
      unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
        constexpr int kTap = i.value - t.value * kStep;
        if constexpr (kTap >= 0 && kTap < kR) sum[t.value] += weight[kTap] * value;
      });
      row += job.x_pitch;
    });
  }
  const Vec<A> low = broadcast(job.low), high = broadcast(job.high);
  unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
    Vec<A> y = sum[t.value];
    y = y < low ? low : y;  // NaN stays
    y = y > high ? high : y;
    store_vec(out + t.value * job.out_pitch, y);
  });
}

template <int kR, int kStep, class A>
static void depthwise_rows(const DepthwiseRows<A>& job) {
  for (int64_t i = 0; i < job.rows; i += kDepthwiseRows) {
    const A* x = job.x + i * kStep * job.x_pitch;
    A* out = job.out + i * job.out_pitch;
    with_constant<1, kDepthwiseRows>(min<int64_t>(kDepthwiseRows, job.rows - i), [&](auto rows) CNNFAST_INLINE_LAMBDA {
      for (int64_t v = 0; v < job.registers; ++v)
        depthwise_tile<kR, kStep, rows.value>(job, x + min(v * job.x_step, job.x_last),
                                              out + min(v * job.out_step, job.out_last));
    });
  }
}

template <class A>
static void depthwise_rows(int64_t R, int64_t step, const DepthwiseRows<A>& job) {
  if (step == 2) {
    R == 3 ? depthwise_rows<3, 2>(job) : R == 5 ? depthwise_rows<5, 2>(job) : depthwise_rows<7, 2>(job);
  } else if (R == 7) {
    depthwise_rows<7, 1>(job);
  } else {
    with_constant<1, 5>(R, [&](auto size) { depthwise_rows<size.value, 1>(job); });
  }
}

// The block's channels, and which of an image's rows.
struct DepthwiseUnit {
  int64_t n, c, channels;
  int64_t first, rows;  // outputs of part 0, and of others as far as there are any
};

// Calls body(unit, block) for each unit of a task.
template <class Body>
static void for_each_unit(const DepthwisePlan& plan, const Conv2dShape& s, int64_t task, const Body& body) {
  const int64_t slice = task / plan.groups, group = task % plan.groups, pairs = s.N * plan.bands;
  for (int64_t pair = slice * pairs / plan.slices; pair < (slice + 1) * pairs / plan.slices; ++pair) {
    for (int64_t block = group * plan.blocks / plan.groups; block < (group + 1) * plan.blocks / plan.groups; ++block) {
      const int64_t c = block * plan.block;
      body(DepthwiseUnit{pair / plan.bands, c, min(plan.block, s.C - c), pair % plan.bands * plan.band, plan.band},
           block);
    }
  }
}

// From the unit's filled slab.
template <class T>
static void depthwise_unit(const DepthwiseAxes& axes, const DepthwiseScratch<Compute<T>>& scratch,
                           const DepthwisePlan& plan, const DepthwiseUnit& unit, const Compute<T>* packed,
                           Compute<T> low, Compute<T> high, View<T> output, const Conv2dShape& s, int64_t H,
                           int64_t W) {
  using A = Compute<T>;
  const int64_t top = unit.first * axes.h.parts, rows = min(unit.rows * axes.h.parts, H - top);
  if (rows <= 0) return;
  // Whole registers can go to where they belong, others by way of the workspace.
  bool direct = false;
  if constexpr (sizeof(T) == sizeof(A)) {
    direct = plan.block == 1 ? output.stride.w == 1 && axes.w.parts == 1
                             : output.stride.c == 1 && unit.channels == plan.block;
  }
  Slab result = scratch.result;
  A* out = scratch.result_data;
  int64_t pixel = plan.block;
  if constexpr (sizeof(T) == sizeof(A)) {
    if (direct) {
      out = output.at(unit.n, unit.c, top, 0);
      result.pitch = output.stride.h;
      pixel = plan.block == 1 ? 1 : output.stride.w;
    }
  }
  const A* weight = packed;
  if (plan.block == 1) {
    weight = scratch.weight;
    for (int64_t i = 0; i < axes.packed_size(s); ++i) store_vec(scratch.weight + i * kLanes<A>, broadcast(packed[i]));
  }
  for (int64_t a = 0; a < axes.h.parts; ++a) {
    const GatherAxis& h = axes.h.part[a];
    for (int64_t b = 0; b < axes.w.parts; ++b) {
      const GatherAxis& w = axes.w.part[b];
      int64_t taps[kDepthwiseMaxSize];
      for (int64_t s = 0; s < w.taps; ++s) taps[s] = scratch.source.offset(w.origin - axes.w.low + s);
      DepthwiseRows<A> job{scratch.source_data + (h.origin - axes.h.low) * scratch.source.pitch,
                           scratch.source.pitch,
                           0,
                           taps,
                           w.taps,
                           weight,
                           low,
                           high,
                           out + a * result.pitch,
                           axes.h.parts * result.pitch,
                           0,
                           min(unit.rows, h.outputs - unit.first),
                           w.outputs,
                           INT64_MAX,
                           INT64_MAX};
      if (plan.block == 1) {
        job.out += result.offset(b);
        job.x_step = job.out_step = kLanes<A>;
        job.registers = ceil_div(w.outputs, kLanes<A>);
        job.x_last = job.out_last = w.outputs - kLanes<A>;
      } else {
        job.out += b * pixel;
        job.x_step = axes.w.step * plan.block;
        job.out_step = axes.w.parts * pixel;
      }
      depthwise_rows(h.taps, axes.h.step, job);
      weight += (1 + h.taps * w.taps) * kLanes<A>;
    }
  }
  if (!direct) write_slab(result, {unit.n, unit.c, unit.channels, top, rows, 0, W, H, W}, out, output);
}

template <class T>
static void depthwise_gather(const DepthwiseGather<T>& job, int64_t task, char* workspace) {
  const Conv2dShape& s = job.conv;
  const DepthwiseAxes axes(s, job.input_gradient);
  const DepthwiseScratch<Compute<T>> scratch(s, job.plan, axes, job.input_gradient, workspace);
  const int64_t source_h = job.input_gradient ? s.P : s.H, source_w = job.input_gradient ? s.Q : s.W;
  const int64_t output_h = job.input_gradient ? s.H : s.P, output_w = job.input_gradient ? s.W : s.Q;
  for_each_unit(job.plan, s, task, [&](const DepthwiseUnit& unit, int64_t block) {
    const int64_t rows = min(unit.rows, axes.h.outputs - unit.first);
    if (rows <= 0) return;
    fill_slab(scratch.source,
              {unit.n, unit.c, unit.channels, unit.first * axes.h.step + axes.h.low, axes.h.span(rows), axes.w.low,
               scratch.source_columns, source_h, source_w},
              job.source, scratch.source_data);
    depthwise_unit(axes, scratch, job.plan, unit, job.packed_weight + block * axes.packed_size(s) * job.plan.block,
                   job.low, job.high, job.output, s, output_h, output_w);
  });
}

static bool is_depthwise(const Conv2dShape& s) {
  const auto size = [](int64_t kernel) { return kernel == 3 || kernel == 5 || kernel == 7; };
  const auto stride = [](int64_t step) { return step == 1 || step == 2; };
  return s.C > 1 && s.G == s.C && s.K == s.C && size(s.R) && size(s.S) && stride(s.stride_h) && stride(s.stride_w) &&
         s.dilation_h == 1 && s.dilation_w == 1;
}

// `most_slices` for sums over the batch; `bytes(plan)` is what a unit of one band needs of the first cache level.
template <class A, class Bytes>
static void cut_depthwise(const Conv2dShape& s, const DepthwiseAxes& axes, bool channels_last, int64_t narrowest,
                          int64_t most_tasks, const Bytes& bytes, DepthwisePlan* plan) {
  const bool by_channel = (channels_last && 2 * s.C >= kLanes<A>) || narrowest < kLanes<A>;
  plan->block = by_channel ? kLanes<A> : 1;
  plan->blocks = ceil_div(s.C, plan->block);
  plan->packed_weight = plan->blocks * plan->block * axes.packed_size(s);
  plan->sums = plan->blocks * plan->block * (s.R * s.S + 1);
  const int64_t rows = max(axes.h.outputs, s.P);
  const int64_t products = s.C * s.R * s.S * s.Q * s.P;
  plan->band = band_of(max<int64_t>(rows, 1), s.N * plan->blocks, products / max<int64_t>(rows, 1), [&](int64_t band) {
    plan->band = band;
    const int64_t source = axes.h.span(band) * s.W * s.C * static_cast<int64_t>(sizeof(A));
    return bytes(*plan) <= kDepthwiseSlabBytes && (!channels_last || source <= kDepthwiseBandBytes);
  });
  plan->bands = ceil_div(max<int64_t>(rows, 1), plan->band);
  const int64_t wanted = max<int64_t>(1, min(most_tasks, s.N * products / kTaskProducts));
  plan->slices = max<int64_t>(1, min(s.N * plan->bands, wanted));
  plan->groups = min(plan->blocks, ceil_div(wanted, plan->slices));
  plan->workspace_bytes = bytes(*plan);
}

template <class A>
static bool depthwise_plan(const Conv2dShape& s, bool input_gradient, bool channels_last, DepthwisePlan* plan) {
  constexpr int64_t kMostTasks = 64;
  if (!is_depthwise(s)) return false;
  const DepthwiseAxes axes(s, input_gradient);
  cut_depthwise<A>(s, axes, channels_last, axes.w.part[axes.w.parts - 1].outputs, kMostTasks,
                   [&](const DepthwisePlan& cut) {
                     return DepthwiseScratch<A>(s, cut, axes, input_gradient, nullptr).bytes;
                   },
                   plan);
  return true;
}

// For each block of channels and each part: bias, then the taps column by column.
template <class T>
static void pack_depthwise(const Conv2dShape& s, const DepthwisePlan& plan, bool input_gradient, View<const T> weight,
                           const T* bias, Compute<T>* packed) {
  const DepthwiseAxes axes(s, input_gradient);
  for (int64_t c = 0; c < plan.blocks * plan.block; c += plan.block) {
    for (int64_t a = 0; a < axes.h.parts; ++a) {
      const GatherAxis& h = axes.h.part[a];
      for (int64_t b = 0; b < axes.w.parts; ++b) {
        const GatherAxis& w = axes.w.part[b];
        const auto pack = [&](const T* first, int64_t stride) {
          for (int64_t l = 0; l < plan.block; ++l)
            *packed++ = first != nullptr && c + l < s.C ? load(first + l * stride) : Compute<T>(0);
        };
        pack(bias == nullptr ? nullptr : bias + c, 1);
        for (int64_t j = 0; j < w.taps; ++j)
          for (int64_t i = 0; i < h.taps; ++i)
            pack(weight.at(c, 0, h.first_tap + i * h.tap_stride, w.first_tap + j * w.tap_stride), weight.stride.n);
      }
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
