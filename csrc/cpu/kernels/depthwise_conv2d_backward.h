// The gradients of a depthwise convolution (+ ReLU), a band of rows at a time: from grad_output come the input gradient
// (depthwise_conv2d.h) and
//
//   grad_weight[c][r][s] = sum over p, q of grad_output[c][p][q] * input[c][p * stride + r][q * stride + s]   (padded)
//
// Images in channels_last and planes of float32 are read and written in place (as in depthwise_conv2d.h); with a ReLU,
// of 16 bits, and else, a block of channels at a time: grad_output is copied once for both, with zeros wherever the
// ReLU clipped.
#pragma once

#include "cpu/kernels/depthwise_conv2d.h"
#include "cpu/kernels/depthwise_weight_tile.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int64_t kDepthwiseSlices = 16;  // as many partial sums as reduction_slices gives at most

// What a unit works on. In place that is sums only, of all its blocks.
template <class A>
struct DepthwiseBackwardScratch : private Scratch {
  A* sums;
  DepthwiseScratch<A> gradient;
  int64_t input_columns;
  A *input, *clip;
  int64_t bytes;

  DepthwiseBackwardScratch(const Conv2dShape& s, const DepthwiseAxes& axes, const DepthwisePlan& plan, void* memory)
      : Scratch(memory),
        sums(take<A>((plan.in_place ? plan.blocks : 1) * s.R * s.S * kLanes<A>)),
        gradient(*this, s, axes, plan, true),
        input_columns(plan.in_place ? 0 : (s.Q - 1) * s.stride_w + s.S) {
    input = take<A>(((plan.band - 1) * s.stride_h + s.R) * input_columns * kLanes<A>);
    clip = take<A>(gradient.source_rows * gradient.source_columns * kLanes<A>);
    bytes = static_cast<int64_t>(used());
  }
};

// A unit's grad_output and input: in its slabs, or in place.
template <class A>
struct DepthwiseGradients {
  DepthwiseSource<A> dy, input;
};

template <class A>
CNNFAST_INLINE void add_register(A* to, Vec<A> sum) {
  store_vec(to, load_vec(to) + sum);
}

// Adds a unit's part to its blocks' sums: [block][tap or, last, bias][channel of the block].
template <class T>
static void add_depthwise_sums(const DepthwiseBackward<T>& job, const DepthwiseGradients<Compute<T>>& gradients,
                               const DepthwiseUnit& unit, Compute<T>* scratch, Compute<T>* sums) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  const int64_t rows = min(unit.rows, s.P - unit.first), taps = s.R * s.S, blocks = ceil_div(unit.channels, kLanes<A>);
  const int64_t channels = max<int64_t>(unit.channels, kLanes<A>);
  if (rows <= 0) return;
  if (job.want_weight) {
    fill_zeros(scratch, blocks * taps);
    depthwise_weight_rows<A>(
        s.R, s.stride_h,
        {gradients.input.moved(-s.pad_top, -s.pad_left), gradients.dy, s.stride_w, s.S, rows, s.Q, channels, scratch});
    for (int64_t block = 0; block < blocks; ++block, scratch += taps * kLanes<A>)
      for (int64_t r = 0; r < s.R; ++r)
        for (int64_t i = 0; i < s.S; ++i)
          add_register(sums + (block * (taps + 1) + r * s.S + i) * kLanes<A>,
                       load_vec(scratch + (i * s.R + r) * kLanes<A>));
  }
  if (!job.want_bias) return;
  // A few pixels of all channels at a time, in the order of memory.
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < s.Q; j += kDepthwiseWeightColumns) {
      const DepthwiseSource<A> pixels = gradients.dy.moved(i, j);
      const int64_t count = min(kDepthwiseWeightColumns, s.Q - j);
      for (int64_t block = 0; block < blocks; ++block) {
        const A* dy = pixels.place() + min(block * kLanes<A>, channels - kLanes<A>);
        Vec<A> sum{};
        for (int64_t q = 0; q < count; ++q) sum += load_vec(dy + q * pixels.pixel);
        add_register(sums + (block * (taps + 1) + taps) * kLanes<A>, sum);
      }
    }
  }
}

// Copies a unit's grad_output and input, as far as they are wanted, to its slabs.
template <class T>
static DepthwiseGradients<Compute<T>> fill_slabs(const DepthwiseBackward<T>& job, const DepthwiseAxes& axes,
                                                 const DepthwiseUnit& unit,
                                                 const DepthwiseBackwardScratch<Compute<T>>& scratch) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  const DepthwiseScratch<A>& slab = scratch.gradient;
  const SlabWindow window{
      unit.n, unit.c, unit.channels, unit.first + axes.h.low, axes.h.span(unit.rows), axes.w.low, slab.source_columns,
      s.P,    s.Q};
  fill_slab(window, job.grad_output, slab.source);
  if (job.output.data != nullptr) {
    fill_slab(window, job.output, scratch.clip);
    const SlabInside inside(window);
    for (int64_t r = inside.begin; r < inside.end; ++r) {
      for (int64_t q = inside.first; q < inside.last; ++q) {
        const int64_t at = (r * window.columns + q) * kLanes<A>;
        const Vec<A> y = load_vec(scratch.clip + at), dy = load_vec(slab.source + at);
        store_vec(slab.source + at, y <= 0 ? Vec<A>{} : dy);
      }
    }
  }
  const int64_t rows = min(unit.rows, s.P - unit.first), input_rows = (rows - 1) * s.stride_h + s.R;
  const SlabWindow input{unit.n,     unit.c,      unit.channels,         unit.first * s.stride_h - s.pad_top,
                         input_rows, -s.pad_left, scratch.input_columns, s.H,
                         s.W};
  if (job.want_weight && rows > 0) fill_slab(input, job.input, scratch.input);
  return {slab_source(window, slab.source, unit.first), slab_source(input, scratch.input, unit.first * s.stride_h)};
}

template <class T>
static void depthwise_backward(const DepthwiseBackward<T>& job, int64_t task, Compute<T>* sums, char* workspace) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  const DepthwisePlan& plan = job.plan;
  if constexpr (std::is_same_v<T, float>) {
    if (plan.by_columns) return depthwise_planes_backward(job, task, sums);
  }
  const DepthwiseAxes axes(s, true);
  const DepthwiseBackwardScratch<A> scratch(s, axes, plan, workspace);
  const int64_t block_sums = (s.R * s.S + 1) * kLanes<A>;
  int64_t first, last;
  task_blocks<A>(s, plan, task, &first, &last);
  sums += task / plan.groups * plan.sums;
  for (int64_t i = first * block_sums; i < last * block_sums; ++i) sums[i] = 0;
  for_each_unit<A>(s, plan, task, [&](const DepthwiseUnit& unit, int64_t block) {
    DepthwiseGradients<A> gradients;
    if constexpr (std::is_same_v<T, A>) {
      if (plan.in_place) {
        gradients = {image_source(unit, unit.first, job.grad_output, s.P, s.Q),
                     image_source(unit, unit.first * s.stride_h, job.input, s.H, s.W)};
      }
    }
    if (!plan.in_place) gradients = fill_slabs(job, axes, unit, scratch);
    if (job.grad_input.data != nullptr) {
      depthwise_unit<T>(axes, gradients.dy, unit, job.packed_weight + block * axes.packed_size * kLanes<A>,
                        Activation::none, job.grad_input, s.H, s.W, scratch.gradient.result);
    }
    if (job.want_weight || job.want_bias)
      add_depthwise_sums(job, gradients, unit, scratch.sums, sums + block * block_sums);
  });
}

template <class T>
static bool depthwise_backward_plan(const Conv2dShape& s, DepthwiseLayout layout, DepthwisePlan* plan) {
  using A = Compute<T>;
  if (!is_depthwise(s, kLanes<A>)) return false;
  const DepthwiseAxes axes(s, true);
  if constexpr (std::is_same_v<T, float>) {
    if (layout == DepthwiseLayout::columns && depthwise_planes_backward_plan(s, axes, plan)) return true;
  }
  *plan = cut_depthwise<T>(s, axes, layout, kDepthwiseSlices, [&](const DepthwisePlan& cut) {
    return DepthwiseBackwardScratch<A>(s, axes, cut, nullptr).bytes;
  });
  return plan->workspace_bytes <= kMostDepthwiseBytes;
}

template <class T>
static void finish_depthwise(const Conv2dShape& s, const DepthwisePlan& plan, const Compute<T>* sums,
                             View<T> grad_weight, T* grad_bias) {
  using A = Compute<T>;
  if constexpr (std::is_same_v<T, float>) {
    if (plan.by_columns) return finish_depthwise_planes(s, sums, grad_weight, grad_bias);
  }
  const int64_t taps = s.R * s.S;
  for (int64_t c = 0; c < s.C; ++c) {
    const int64_t block = c / kLanes<A>;
    const A* first = sums + block * (taps + 1) * kLanes<A> + c - first_channel<A>(s, plan, block);
    const auto total = [&](int64_t index) {
      A sum = 0;
      for (int64_t slice = 0; slice < plan.slices; ++slice) sum += first[slice * plan.sums + index * kLanes<A>];
      return sum;
    };
    if (grad_weight.data != nullptr)
      for (int64_t tap = 0; tap < taps; ++tap) store(grad_weight.at(c, 0, tap / s.S, tap % s.S), total(tap));
    if (grad_bias != nullptr) store(grad_bias + c, total(taps));
  }
}

template <class T>
constexpr DepthwiseKernels<T> depthwise_kernels() {
  return {depthwise_plan<T>,          pack_depthwise<T>,     depthwise_gather<T>,
          depthwise_backward_plan<T>, depthwise_backward<T>, finish_depthwise<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
