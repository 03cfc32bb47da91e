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
struct DepthwiseBackwardScratch {
  DepthwiseScratch<A> gradient;
  Slab input;
  int64_t input_columns, registers;
  A *input_data, *clip, *sums;
  int64_t bytes;

  DepthwiseBackwardScratch(const Conv2dShape& s, const DepthwisePlan& plan, const DepthwiseAxes& axes, char* memory)
      : gradient(s, plan, axes, true, memory) {
    registers = plan.block > 1 ? s.Q : ceil_div(s.Q, kLanes<A>);
    input_columns = ((plan.block > 1 ? s.Q : registers * kLanes<A>)-1) * s.stride_w + s.S;
    input = make_slab<A>(plan.block, s.stride_w - 1, input_columns);
    input_data = gradient.take(memory, ((plan.band - 1) * s.stride_h + s.R) * input.pitch);
    clip = gradient.take(memory, gradient.source_rows * gradient.source.pitch);
    sums = gradient.take(memory, s.R * s.S * kLanes<A>);
    bytes = gradient.bytes;
  }
};

template <class A>
struct DepthwiseWeightRows {
  const A* x;
  int64_t x_pitch, x_step;
  const A* dy;
  int64_t dy_pitch, dy_step;
  int64_t rows, registers;
  int64_t tail;  // lanes of one more register that count, of x; those of dy are zero
};

// Adds to sums[j * kR + r], in registers, for kTaps columns of taps.
template <int kR, int kStep, int kTaps, class A>
static void depthwise_weight_grad(const DepthwiseWeightRows<A>& job, const int64_t* taps, A* sums) {
  Vec<A> sum[kTaps][kR] = {};
  const auto add = [&](auto rows, const A* x, const A* dy, auto whole) CNNFAST_INLINE_LAMBDA {
    Vec<A> g[rows.value];
    unroll<rows.value>([&](auto t) CNNFAST_INLINE_LAMBDA { g[t.value] = load_vec(dy + t.value * job.dy_pitch); });
    unroll<kTaps>([&](auto j) CNNFAST_INLINE_LAMBDA {
      const A* row = x + taps[j.value];
      unroll<(rows.value - 1) * kStep + kR>([&](auto i) CNNFAST_INLINE_LAMBDA {
        Vec<A> value = load_vec(row);
        // What is no number, times zero, is not zero.
        if constexpr (!whole.value) value = first_lanes<A>(value, job.tail);
        unroll<rows.value>([&](auto t) CNNFAST_INLINE_LAMBDA {
          constexpr int kTap = i.value - t.value * kStep;
          if constexpr (kTap >= 0 && kTap < kR) sum[j.value][kTap] += value * g[t.value];
        });
        row += job.x_pitch;
      });
    });
  };
  const auto add_rows = [&](auto rows, int64_t first) CNNFAST_INLINE_LAMBDA {
    const A *x = job.x + first * kStep * job.x_pitch, *dy = job.dy + first * job.dy_pitch;
    for (int64_t v = 0; v < job.registers; ++v, x += job.x_step, dy += job.dy_step) add(rows, x, dy, Constant<1>{});
    if (job.tail > 0) add(rows, x, dy, Constant<0>{});
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
static void depthwise_weight_grads(const DepthwiseWeightRows<A>& job, const int64_t* taps, int64_t S, A* sums) {
  constexpr int kTaps = kR == 3 ? 3 : kR == 5 ? 2 : 1;
  int64_t s = 0;
  for (; s + kTaps <= S; s += kTaps)
    depthwise_weight_grad<kR, kStep, kTaps>(job, taps + s, sums + s * kR * kLanes<A>);
  for (; s < S; ++s) depthwise_weight_grad<kR, kStep, 1>(job, taps + s, sums + s * kR * kLanes<A>);
}

template <class A>
static void depthwise_weight_grads(const Conv2dShape& s, const DepthwiseWeightRows<A>& job, const int64_t* taps,
                                   A* sums) {
  const auto run = [&](auto step) CNNFAST_INLINE_LAMBDA {
    if (s.R == 3) depthwise_weight_grads<3, step.value>(job, taps, s.S, sums);
    if (s.R == 5) depthwise_weight_grads<5, step.value>(job, taps, s.S, sums);
    if (s.R == 7) depthwise_weight_grads<7, step.value>(job, taps, s.S, sums);
  };
  with_constant<1, 2>(s.stride_h, run);
}

// Adds a unit's part to its block's sums: [tap or, last, bias][channel of the block].
template <class T>
static void add_depthwise_sums(const DepthwiseBackward<T>& job, const DepthwiseAxes& axes,
                               const DepthwiseBackwardScratch<Compute<T>>& scratch, const DepthwiseUnit& unit,
                               Compute<T>* sums) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  const int64_t rows = min(unit.rows, s.P - unit.first), block = job.plan.block;
  if (rows <= 0) return;
  const DepthwiseScratch<A>& gradient = scratch.gradient;
  const A* dy = gradient.source_data - axes.h.low * gradient.source.pitch - axes.w.low * block;
  const auto add = [&](int64_t index, Vec<A> sum) CNNFAST_INLINE_LAMBDA {
    A* to = sums + index * block;
    if (block > 1) {
      store_vec(to, load_vec(to) + sum);
    } else {
      *to += lane_sum<A>(sum);
    }
  };
  const int64_t taps = s.R * s.S;
  if (job.want_bias) {
    Vec<A> sum[2] = {};  // two chains of additions
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t v = 0; v < scratch.registers; ++v)
        sum[i & 1] += load_vec(dy + i * gradient.source.pitch + v * kLanes<A>);
    add(taps, sum[0] + sum[1]);
  }
  if (!job.want_weight) return;
  fill_slab(scratch.input,
            {unit.n, unit.c, unit.channels, unit.first * s.stride_h - s.pad_top, (rows - 1) * s.stride_h + s.R,
             -s.pad_left, scratch.input_columns, s.H, s.W},
            job.input, scratch.input_data);
  int64_t columns[kDepthwiseMaxSize];
  for (int64_t i = 0; i < s.S; ++i) columns[i] = scratch.input.offset(i);
  const int64_t tail = block > 1 ? 0 : s.Q % kLanes<A>;
  fill_zeros(scratch.sums, taps * kLanes<A>);
  depthwise_weight_grads<A>(s,
                            {scratch.input_data, scratch.input.pitch, block > 1 ? s.stride_w * block : kLanes<A>, dy,
                             gradient.source.pitch, kLanes<A>, rows, scratch.registers - (tail > 0), tail},
                            columns, scratch.sums);
  for (int64_t r = 0; r < s.R; ++r)
    for (int64_t i = 0; i < s.S; ++i) add(r * s.S + i, load_vec(scratch.sums + (i * s.R + r) * kLanes<A>));
}

template <class T>
static void depthwise_backward(const DepthwiseBackward<T>& job, int64_t task, Compute<T>* sums, char* workspace) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  const DepthwiseAxes axes(s, true);
  const DepthwiseBackwardScratch<A> scratch(s, job.plan, axes, workspace);
  const DepthwiseScratch<A>& gradient = scratch.gradient;
  const int64_t block_sums = (s.R * s.S + 1) * job.plan.block, groups = job.plan.groups, group = task % groups;
  sums += task / groups * job.plan.sums;
  const int64_t first = group * job.plan.blocks / groups, last = (group + 1) * job.plan.blocks / groups;
  for (int64_t i = first * block_sums; i < last * block_sums; ++i) sums[i] = 0;
  for_each_unit(job.plan, s, task, [&](const DepthwiseUnit& unit, int64_t block) {
    const SlabWindow window{unit.n, unit.c, unit.channels, unit.first + axes.h.low, gradient.source_rows, axes.w.low,
                            gradient.source_columns, s.P, s.Q};
    fill_slab(gradient.source, window, job.grad_output, gradient.source_data);
    if (job.output.data != nullptr) {
      fill_slab(gradient.source, window, job.output, scratch.clip);
      for (int64_t i = 0; i < gradient.source_rows * gradient.source.pitch; i += kLanes<A>) {
        const Vec<A> y = load_vec(scratch.clip + i), dy = load_vec(gradient.source_data + i);
        store_vec(gradient.source_data + i, y <= 0 ? Vec<A>{} : dy);
      }
    }
    if (job.grad_input.data != nullptr) {
      const int64_t packed = axes.packed_size(s) * job.plan.block;
      depthwise_unit(axes, gradient, job.plan, unit, job.packed_weight + block * packed,
                     -static_cast<A>(__builtin_inf()), static_cast<A>(__builtin_inf()), job.grad_input, s, s.H, s.W);
    }
    if (job.want_weight || job.want_bias) add_depthwise_sums(job, axes, scratch, unit, sums + block * block_sums);
  });
}

template <class A>
static bool depthwise_backward_plan(const Conv2dShape& s, bool channels_last, DepthwisePlan* plan) {
  if (!is_depthwise(s)) return false;
  const DepthwiseAxes axes(s, true);
  const int64_t narrowest = min(axes.w.part[axes.w.parts - 1].outputs, s.Q);
  cut_depthwise<A>(s, axes, channels_last, narrowest, kDepthwiseSlices,
                   [&](const DepthwisePlan& cut) {
                     return DepthwiseBackwardScratch<A>(s, cut, axes, nullptr).bytes;
                   },
                   plan);
  return true;
}

template <class T>
static void finish_depthwise(const Conv2dShape& s, const DepthwisePlan& plan, const Compute<T>* sums,
                             View<T> grad_weight, T* grad_bias) {
  const int64_t taps = s.R * s.S;
  for (int64_t c = 0; c < s.C; ++c) {
    const Compute<T>* first = sums + c / plan.block * (taps + 1) * plan.block + c % plan.block;
    const auto total = [&](int64_t index) {
      Compute<T> sum = 0;
      for (int64_t slice = 0; slice < plan.slices; ++slice) sum += first[slice * plan.sums + index * plan.block];
      return sum;
    };
    if (grad_weight.data != nullptr)
      for (int64_t tap = 0; tap < taps; ++tap) store(grad_weight.at(c, 0, tap / s.S, tap % s.S), total(tap));
    if (grad_bias != nullptr) store(grad_bias + c, total(taps));
  }
}

template <class T>
constexpr DepthwiseKernels<T> depthwise_kernels() {
  return {depthwise_plan<Compute<T>>, pack_depthwise<T>,     depthwise_gather<T>, depthwise_backward_plan<Compute<T>>,
          depthwise_backward<T>,      finish_depthwise<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
