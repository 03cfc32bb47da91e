// The gradients of a depthwise convolution (+ ReLU), a band of rows of a block of channels at a time: from one copy of
// grad_output, with zeros around it and wherever the ReLU clipped, come the input gradient (depthwise_conv2d.h) and
//
//   grad_weight[c][r][s] = sum over p, q of grad_output[c][p][q] * input[c][p * stride + r][q * stride + s]   (padded)
//
// of which some columns of taps are summed at a time, every tap in a register of its own.
#pragma once

#include "cpu/kernels/depthwise_conv2d.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int64_t kDepthwiseSlices = 16;  // as many partial sums as reduction_slices gives at most

template <class A>
struct DepthwiseBackwardScratch : private Scratch {
  DepthwiseScratch<A> gradient;
  int64_t input_columns;
  A *input, *clip, *sums;
  int64_t bytes;

  DepthwiseBackwardScratch(const Conv2dShape& s, const DepthwiseAxes& axes, int64_t band, void* memory)
      : Scratch(memory), gradient(*this, s, axes, band, true), input_columns((s.Q - 1) * s.stride_w + s.S) {
    input = take<A>(((band - 1) * s.stride_h + s.R) * input_columns * kLanes<A>);
    clip = take<A>(gradient.source_rows * gradient.source_columns * kLanes<A>);
    sums = take<A>(s.R * s.S * kLanes<A>);
    bytes = static_cast<int64_t>(used());
  }
};

// Some rows of grad_output, and the rows of input that they meet. Strides in elements.
template <class A>
struct DepthwiseWeightRows {
  const A* x;
  int64_t x_pitch, x_step;
  const A* dy;
  int64_t dy_pitch;
  int64_t rows, columns;
};

// Adds to sums[j * kR + r], in registers, for kTaps columns of taps.
template <int kR, int kStep, int kTaps, class A>
static void depthwise_weight_grad(const DepthwiseWeightRows<A>& job, const A* x, A* sums) {
  Vec<A> sum[kTaps][kR] = {};
  const auto add_rows = [&](auto rows, int64_t first) CNNFAST_INLINE_LAMBDA {
    const A *pixel = x + first * kStep * job.x_pitch, *dy = job.dy + first * job.dy_pitch;
    for (int64_t q = 0; q < job.columns; ++q, pixel += job.x_step, dy += kLanes<A>) {
      Vec<A> g[rows.value];
      unroll<rows.value>([&](auto t) CNNFAST_INLINE_LAMBDA {
        g[t.value] = load_vec(dy + t.value * job.dy_pitch);
        pin(g[t.value]);
      });
      const A* row = pixel;
      unroll<(rows.value - 1) * kStep + kR>([&](auto i) CNNFAST_INLINE_LAMBDA {
        unroll<kTaps>([&](auto j) CNNFAST_INLINE_LAMBDA {
          const Vec<A> value = load_vec(row + j.value * kLanes<A>);
          unroll<rows.value>([&](auto t) CNNFAST_INLINE_LAMBDA {
            constexpr int kTap = i.value - t.value * kStep;
            if constexpr (kTap >= 0 && kTap < kR) sum[j.value][kTap] += value * g[t.value];
          });
        });
        row += job.x_pitch;
      });
    }
  };
  int64_t i = 0;
  for (; i + kDepthwiseRows <= job.rows; i += kDepthwiseRows) add_rows(Constant<kDepthwiseRows>{}, i);
  for (; i < job.rows; ++i) add_rows(Constant<1>{}, i);
  unroll<kTaps>([&](auto j) CNNFAST_INLINE_LAMBDA {
    unroll<kR>([&](auto r) CNNFAST_INLINE_LAMBDA {
      A* to = sums + (j.value * kR + r.value) * kLanes<A>;
      store_vec(to, load_vec(to) + sum[j.value][r.value]);
    });
  });
}

// As many columns of taps at a time as leave registers for four rows of grad_output.
template <int kR, int kStep, class A>
static void depthwise_weight_grads(const DepthwiseWeightRows<A>& job, int64_t S, A* sums) {
  constexpr int kTaps = kR == 3 ? 3 : kR == 5 ? 2 : 1;
  int64_t s = 0;
  for (; s + kTaps <= S; s += kTaps)
    depthwise_weight_grad<kR, kStep, kTaps>(job, job.x + s * kLanes<A>, sums + s * kR * kLanes<A>);
  if constexpr (kTaps > 1) {
    for (; s < S; ++s) depthwise_weight_grad<kR, kStep, 1>(job, job.x + s * kLanes<A>, sums + s * kR * kLanes<A>);
  }
}

// Adds a unit's part to its block's sums: [tap or, last, bias][channel of the block].
template <class T>
static void add_depthwise_sums(const DepthwiseBackward<T>& job, const DepthwiseAxes& axes,
                               const DepthwiseBackwardScratch<Compute<T>>& scratch, const DepthwiseUnit& unit,
                               Compute<T>* sums) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  const int64_t rows = min(unit.rows, s.P - unit.first), taps = s.R * s.S;
  if (rows <= 0) return;
  const int64_t pitch = scratch.gradient.source_columns * kLanes<A>;
  const A* dy = scratch.gradient.source - axes.h.low * pitch - axes.w.low * kLanes<A>;
  const auto add = [&](int64_t index, Vec<A> sum) CNNFAST_INLINE_LAMBDA {
    A* to = sums + index * kLanes<A>;
    store_vec(to, load_vec(to) + sum);
  };
  if (job.want_bias) {
    for (int64_t i = 0; i < rows; ++i) {
      Vec<A> row{};
      for (int64_t q = 0; q < s.Q; ++q) row += load_vec(dy + i * pitch + q * kLanes<A>);
      add(taps, row);
    }
  }
  if (!job.want_weight) return;
  fill_slab({unit.n, unit.c, unit.channels, unit.first * s.stride_h - s.pad_top, (rows - 1) * s.stride_h + s.R,
             -s.pad_left, scratch.input_columns, s.H, s.W},
            job.input, scratch.input);
  fill_zeros(scratch.sums, taps);
  const DepthwiseWeightRows<A> part{
      scratch.input, scratch.input_columns * kLanes<A>, s.stride_w * kLanes<A>, dy, pitch, rows, s.Q};
  with_constant<1, 2>(s.stride_h, [&](auto step) {
    if (s.R == 3) depthwise_weight_grads<3, step.value>(part, s.S, scratch.sums);
    if (s.R == 5) depthwise_weight_grads<5, step.value>(part, s.S, scratch.sums);
    if (s.R == 7) depthwise_weight_grads<7, step.value>(part, s.S, scratch.sums);
  });
  for (int64_t r = 0; r < s.R; ++r)
    for (int64_t i = 0; i < s.S; ++i) add(r * s.S + i, load_vec(scratch.sums + (i * s.R + r) * kLanes<A>));
}

template <class T>
static void depthwise_backward(const DepthwiseBackward<T>& job, int64_t task, Compute<T>* sums, char* workspace) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  const DepthwisePlan& plan = job.plan;
  const DepthwiseAxes axes(s, true);
  const DepthwiseBackwardScratch<A> scratch(s, axes, plan.band, workspace);
  const DepthwiseScratch<A>& gradient = scratch.gradient;
  const int64_t block_sums = (s.R * s.S + 1) * kLanes<A>, group = task % plan.groups;
  const int64_t first = group * plan.blocks / plan.groups, last = (group + 1) * plan.blocks / plan.groups;
  sums += task / plan.groups * plan.sums;
  for (int64_t i = first * block_sums; i < last * block_sums; ++i) sums[i] = 0;
  for_each_unit<A>(s, plan, task, [&](const DepthwiseUnit& unit, int64_t block) {
    const SlabWindow window{unit.n,
                            unit.c,
                            unit.channels,
                            unit.first + axes.h.low,
                            axes.h.span(unit.rows),
                            axes.w.low,
                            gradient.source_columns,
                            s.P,
                            s.Q};
    fill_slab(window, job.grad_output, gradient.source);
    if (job.output.data != nullptr) {
      fill_slab(window, job.output, scratch.clip);
      for (int64_t i = 0; i < window.rows * window.columns * kLanes<A>; i += kLanes<A>) {
        const Vec<A> y = load_vec(scratch.clip + i), dy = load_vec(gradient.source + i);
        store_vec(gradient.source + i, y <= 0 ? Vec<A>{} : dy);
      }
    }
    if (job.grad_input.data != nullptr) {
      depthwise_unit<T>(axes, gradient, unit, job.packed_weight + block * axes.packed_size(s) * kLanes<A>,
                        Activation::none, job.grad_input, s.H, s.W);
    }
    if (job.want_weight || job.want_bias) add_depthwise_sums(job, axes, scratch, unit, sums + block * block_sums);
  });
}

template <class A>
static bool depthwise_backward_plan(const Conv2dShape& s, bool channels_last, DepthwisePlan* plan) {
  if (!is_depthwise(s, kLanes<A>)) return false;
  const DepthwiseAxes axes(s, true);
  *plan = cut_depthwise<A>(s, axes, channels_last, kDepthwiseSlices,
                           [&](int64_t band) { return DepthwiseBackwardScratch<A>(s, axes, band, nullptr).bytes; });
  return plan->workspace_bytes <= kMostDepthwiseBytes;
}

template <class T>
static void finish_depthwise(const Conv2dShape& s, const DepthwisePlan& plan, const Compute<T>* sums,
                             View<T> grad_weight, T* grad_bias) {
  using A = Compute<T>;
  const int64_t taps = s.R * s.S;
  for (int64_t c = 0; c < s.C; ++c) {
    const A* first = sums + c / kLanes<A> * (taps + 1) * kLanes<A> + c % kLanes<A>;
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
  return {depthwise_plan<Compute<T>>,          pack_depthwise<T>,     depthwise_gather<T>,
          depthwise_backward_plan<Compute<T>>, depthwise_backward<T>, finish_depthwise<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
