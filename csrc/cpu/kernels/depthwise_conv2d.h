// Depthwise convolution + bias + activation, and its input gradient, which is the same computation over grad_output
// (see common/gather_conv.h): with a stride of 2, one for each parity of row and column.
//
//   output[c][i][j] = bias[c] + sum over r, s of weight[c][r][s] * source[c][i * step + r][j * step + s]   (padded)
//
// A register holds one pixel of neighbouring channels, which are copied to a slab first (depthwise_slab.h). A tile is
// 4 pixels below one another: what several of them read is loaded once. The weights of up to 9 taps stay in registers;
// those of more are loaded for each two tiles, a column of taps at a time.
#pragma once

#include "common/gather_conv.h"
#include "cpu/depthwise_conv2d.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/constant.h"
#include "cpu/kernels/depthwise_slab.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/scratch.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kDepthwiseRows = 4;
// What a unit works on is to stay near the first cache level, a band of all channels, where they lie together, in the
// second.
constexpr int64_t kDepthwiseSlabBytes = 48 << 10, kDepthwiseBandBytes = 640 << 10;
// Rows that take more even one at a time are left to implicit GEMM, which cuts them.
constexpr int64_t kMostDepthwiseBytes = 16 << 20;

// One axis of the gathers: output i of part a is at i * parts + a. Outputs i of all parts read source coordinates from
// i * step + low to i * step + reach; with the input gradient, coordinate i is one of these.
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
  // Source coordinates that `count` neighbouring outputs of each part meet.
  int64_t span(int64_t count) const { return (count - 1) * step + reach - low + 1; }
};

struct DepthwiseAxes {
  DepthwiseAxis h, w;

  DepthwiseAxes(const Conv2dShape& s, bool input_gradient)
      : h(input_gradient, s.H, s.P, s.stride_h, s.pad_top, s.R),
        w(input_gradient, s.W, s.Q, s.stride_w, s.pad_left, s.S) {}
  // Per channel, weights and biases of all parts.
  int64_t packed_size(const Conv2dShape& s) const { return h.parts * w.parts + s.R * s.S; }
};

// What a unit of a gather works on.
template <class A>
struct DepthwiseScratch {
  int64_t source_rows, source_columns;
  A *source, *result;

  DepthwiseScratch(Scratch& scratch, const Conv2dShape& s, const DepthwiseAxes& axes, int64_t band, bool input_gradient)
      : source_rows(axes.h.span(band)), source_columns(axes.w.span(axes.w.outputs)) {
    if (input_gradient) source_columns = max(source_columns, s.Q - axes.w.low);
    source = scratch.take<A>(source_rows * source_columns * kLanes<A>);
    result = scratch.take<A>(band * axes.h.parts * (input_gradient ? s.W : s.Q) * kLanes<A>);
  }
};

// Some rows of one part. Strides in elements.
template <class A>
struct DepthwiseRows {
  const A* x;
  int64_t x_pitch, x_step;
  int64_t S;
  const A* weight;  // bias, then the taps column by column, in registers
  Activation activation;
  A* out;
  int64_t out_pitch, out_step;
  int64_t rows, columns;
};

// kRows rows. kS is 0 where the kernel is of more than 9 taps.
template <int kR, int kS, int kStep, int kRows, class A>
CNNFAST_INLINE void depthwise_row_tiles(const DepthwiseRows<A>& job, const A* x, A* out) {
  constexpr int kTapColumns = max(kS, 1);
  const bool clips = job.activation != Activation::none;
  const Clip<A> clip(job.activation);
  Vec<A> weight[kTapColumns][kR];
  const auto load_weights = [&](int64_t column) CNNFAST_INLINE_LAMBDA {
    unroll<kTapColumns>([&](auto s) CNNFAST_INLINE_LAMBDA {
      unroll<kR>([&](auto r) CNNFAST_INLINE_LAMBDA {
        weight[s.value][r.value] = load_vec(job.weight + (1 + (column + s.value) * kR + r.value) * kLanes<A>);
        pin(weight[s.value][r.value]);
      });
    });
  };
  const auto tile = [&](auto pixels) CNNFAST_INLINE_LAMBDA {
    constexpr int kPixels = pixels.value;
    Vec<A> sum[kPixels][kRows];
    unroll<kPixels>([&](auto j) CNNFAST_INLINE_LAMBDA {
      unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA { sum[j.value][t.value] = load_vec(job.weight); });
    });
    const auto add = [&](const A* row) CNNFAST_INLINE_LAMBDA {
      unroll<(kRows - 1) * kStep + kR>([&](auto i) CNNFAST_INLINE_LAMBDA {
        unroll<kPixels>([&](auto j) CNNFAST_INLINE_LAMBDA {
          unroll<kTapColumns>([&](auto s) CNNFAST_INLINE_LAMBDA {
            const Vec<A> value = load_vec(row + j.value * job.x_step + s.value * kLanes<A>);
            unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
              constexpr int kTap = i.value - t.value * kStep;
              if constexpr (kTap >= 0 && kTap < kR) sum[j.value][t.value] += weight[s.value][kTap] * value;
            });
          });
        });
        row += job.x_pitch;
      });
    };
    if constexpr (kS > 0) {
      add(x);
    } else {
      for (int64_t s = 0; s < job.S; ++s) {
        load_weights(s);
        add(x + s * kLanes<A>);
      }
    }
    x += kPixels * job.x_step;
    unroll<kPixels>([&](auto j) CNNFAST_INLINE_LAMBDA {
      unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
        Vec<A> y = sum[j.value][t.value];
        if (clips) y = clip(y);
        store_vec(out + t.value * job.out_pitch, y);
        __builtin_prefetch(reinterpret_cast<char*>(out + t.value * job.out_pitch) + kLineBytes, 1, 2);
      });
      out += job.out_step;
    });
  };
  int64_t j = 0;
  if constexpr (kS > 0) {
    load_weights(0);
  } else {
    // Four chains of many additions would be waited for; and two pixels share what is loaded of the weights.
    for (; j + 2 <= job.columns; j += 2) tile(Constant<2>{});
  }
  for (; j < job.columns; ++j) tile(Constant<1>{});
}

template <int kR, int kS, int kStep, class A>
static void depthwise_rows(const DepthwiseRows<A>& job) {
  for (int64_t i = 0; i < job.rows; i += kDepthwiseRows) {
    with_constant<1, kDepthwiseRows>(min<int64_t>(kDepthwiseRows, job.rows - i), [&](auto rows) {
      depthwise_row_tiles<kR, kS, kStep, rows.value>(job, job.x + i * kStep * job.x_pitch, job.out + i * job.out_pitch);
    });
  }
}

// Kernels of 3, 5 and 7 rows, and the parts that a stride of 2 makes of them.
template <class A>
static void depthwise_rows(int64_t R, int64_t step, const DepthwiseRows<A>& job) {
  const int64_t S = job.S;
  if (step == 2) {
    if (R == 3 && S == 3) return depthwise_rows<3, 3, 2>(job);
    return R == 3 ? depthwise_rows<3, 0, 2>(job) : R == 5 ? depthwise_rows<5, 0, 2>(job) : depthwise_rows<7, 0, 2>(job);
  }
  if (R == 3 && S == 3) return depthwise_rows<3, 3, 1>(job);
  if (R <= 2 && S <= 2) {
    return with_constant<1, 2>(R, [&](auto rows) {
      with_constant<1, 2>(S, [&](auto columns) { depthwise_rows<rows.value, columns.value, 1>(job); });
    });
  }
  if (R == 7) return depthwise_rows<7, 0, 1>(job);
  with_constant<1, 5>(R, [&](auto rows) { depthwise_rows<rows.value, 0, 1>(job); });
}

struct DepthwiseUnit {
  int64_t n, c, channels;
  int64_t first, rows;  // outputs of part 0, and of others as far as there are any
};

// Calls body(unit, block) for each unit of a task.
template <class A, class Body>
static void for_each_unit(const Conv2dShape& s, const DepthwisePlan& plan, int64_t task, const Body& body) {
  const int64_t slice = task / plan.groups, group = task % plan.groups, pairs = s.N * plan.bands;
  for (int64_t pair = slice * pairs / plan.slices; pair < (slice + 1) * pairs / plan.slices; ++pair) {
    for (int64_t block = group * plan.blocks / plan.groups; block < (group + 1) * plan.blocks / plan.groups; ++block) {
      const int64_t c = block * kLanes<A>, first = pair % plan.bands * plan.band;
      body(DepthwiseUnit{pair / plan.bands, c, min<int64_t>(kLanes<A>, s.C - c), first,
                         min(plan.band, plan.rows - first)},
           block);
    }
  }
}

// From the unit's slab, filled from `left`, `top` on, to an output of H x W.
template <class T>
static void depthwise_unit(const DepthwiseAxes& axes, const DepthwiseScratch<Compute<T>>& scratch,
                           const DepthwiseUnit& unit, const Compute<T>* weight, const Epilogue<T>& epilogue,
                           View<T> output, int64_t H, int64_t W) {
  using A = Compute<T>;
  const int64_t top = unit.first * axes.h.parts, rows = min(unit.rows * axes.h.parts, H - top);
  if (rows <= 0) return;
  // Whole registers can go to where they belong, others by way of the workspace.
  A* out = scratch.result;
  int64_t pitch = W * kLanes<A>, pixel = kLanes<A>;
  if constexpr (sizeof(T) == sizeof(A)) {
    if (output.stride.c == 1 && unit.channels == kLanes<A>) {
      out = output.at(unit.n, unit.c, top, 0);
      pitch = output.stride.h, pixel = output.stride.w;
    }
  }
  if (out == scratch.result)
    prefetch_for_writing(View<T>{output.at(0, unit.c, 0, 0), output.stride}, unit.n, unit.channels, top, rows, W);
  const int64_t source_pitch = scratch.source_columns * kLanes<A>;
  for (int64_t a = 0; a < axes.h.parts; ++a) {
    const GatherAxis& h = axes.h.part[a];
    for (int64_t b = 0; b < axes.w.parts; ++b) {
      const GatherAxis& w = axes.w.part[b];
      const A* x = scratch.source + (h.origin - axes.h.low) * source_pitch + (w.origin - axes.w.low) * kLanes<A>;
      depthwise_rows<A>(
          h.taps, axes.h.step,
          {x, source_pitch, axes.w.step * kLanes<A>, w.taps, weight, epilogue.clip(), out + a * pitch + b * pixel,
           axes.h.parts * pitch, axes.w.parts * pixel, min(unit.rows, h.outputs - unit.first), w.outputs});
      weight += (1 + h.taps * w.taps) * kLanes<A>;
    }
  }
  bool written = false;
  if constexpr (sizeof(T) == sizeof(A)) written = out != scratch.result;
  if (!written) write_slab({unit.n, unit.c, unit.channels, top, rows, 0, W, H, W}, out, output);
  finish_box(epilogue, output, {unit.n, unit.c, unit.channels, top, rows, 0, W});
}

template <class T>
static void depthwise_gather(const DepthwiseGather<T>& job, int64_t task, char* workspace) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  const bool backward = job.input_gradient;
  const DepthwiseAxes axes(s, backward);
  Scratch memory(workspace);
  const DepthwiseScratch<A> scratch(memory, s, axes, job.plan.band, backward);
  for_each_unit<A>(s, job.plan, task, [&](const DepthwiseUnit& unit, int64_t block) {
    fill_slab({unit.n, unit.c, unit.channels, unit.first * axes.h.step + axes.h.low, axes.h.span(unit.rows), axes.w.low,
               scratch.source_columns, backward ? s.P : s.H, backward ? s.Q : s.W},
              job.source, scratch.source);
    depthwise_unit(axes, scratch, unit, job.packed_weight + block * axes.packed_size(s) * kLanes<A>, job.epilogue,
                   job.output, backward ? s.H : s.P, backward ? s.W : s.Q);
  });
}

static bool is_depthwise(const Conv2dShape& s, int64_t lanes) {
  const auto size = [](int64_t kernel) { return kernel == 3 || kernel == 5 || kernel == 7; };
  const auto stride = [](int64_t step) { return step == 1 || step == 2; };
  return s.G == s.C && s.K == s.C && 2 * s.C > lanes && size(s.R) && size(s.S) && stride(s.stride_h) &&
         stride(s.stride_w) && s.dilation_h == 1 && s.dilation_w == 1;
}

// bytes(band): what a unit works on.
template <class A, class Bytes>
static DepthwisePlan cut_depthwise(const Conv2dShape& s, const DepthwiseAxes& axes, bool channels_last,
                                   int64_t most_tasks, const Bytes& bytes) {
  DepthwisePlan plan;
  plan.blocks = ceil_div(s.C, kLanes<A>);
  plan.packed_weight = plan.blocks * kLanes<A> * axes.packed_size(s);
  plan.sums = plan.blocks * kLanes<A> * (s.R * s.S + 1);
  plan.rows = max(max(axes.h.outputs, s.P), int64_t{1});
  const int64_t products = s.C * s.R * s.S * s.P * s.Q;
  plan.band = band_of(plan.rows, s.N * plan.blocks, products / plan.rows, [&](int64_t band) {
    const int64_t source = axes.h.span(band) * s.W * s.C * static_cast<int64_t>(sizeof(A));
    return bytes(band) <= kDepthwiseSlabBytes && (!channels_last || source <= kDepthwiseBandBytes);
  });
  if (plan.band < plan.rows) plan.band = round_up(plan.band, kDepthwiseRows);
  plan.bands = ceil_div(plan.rows, plan.band);
  const int64_t wanted = max<int64_t>(1, min(most_tasks, s.N * products / kTaskProducts));
  plan.slices = max<int64_t>(1, min(s.N * plan.bands, wanted));
  plan.groups = min(plan.blocks, ceil_div(wanted, plan.slices));
  plan.workspace_bytes = bytes(plan.band);
  return plan;
}

template <class A>
static bool depthwise_plan(const Conv2dShape& s, bool input_gradient, bool channels_last, DepthwisePlan* plan) {
  constexpr int64_t kMostTasks = 64;
  if (!is_depthwise(s, kLanes<A>)) return false;
  const DepthwiseAxes axes(s, input_gradient);
  *plan = cut_depthwise<A>(s, axes, channels_last, kMostTasks, [&](int64_t band) {
    Scratch scratch(nullptr);
    DepthwiseScratch<A>(scratch, s, axes, band, input_gradient);
    return static_cast<int64_t>(scratch.used());
  });
  return plan->workspace_bytes <= kMostDepthwiseBytes;
}

// For each block of channels and each part: bias, then the taps column by column.
template <class T>
static void pack_depthwise(const Conv2dShape& s, bool input_gradient, View<const T> weight, const T* bias,
                           Compute<T>* packed) {
  constexpr int64_t kPixel = kLanes<Compute<T>>;
  const DepthwiseAxes axes(s, input_gradient);
  for (int64_t c = 0; c < s.C; c += kPixel) {
    for (int64_t a = 0; a < axes.h.parts; ++a) {
      const GatherAxis& h = axes.h.part[a];
      for (int64_t b = 0; b < axes.w.parts; ++b) {
        const GatherAxis& w = axes.w.part[b];
        const auto pack = [&](const T* first, int64_t stride) {
          for (int64_t l = 0; l < kPixel; ++l)
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
