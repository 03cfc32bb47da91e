// Depthwise convolution + bias + activation, and its input gradient, which is the same computation over grad_output
// (see common/gather_conv.h): with a stride of 2, one for each parity of row and column.
//
//   output[c][i][j] = bias[c] + sum over r, s of weight[c][r][s] * source[c][i * step + r][j * step + s]   (padded)
//
// A register holds one pixel of neighbouring channels (depthwise_tile.h). Images in channels_last are read and written
// in place, and so are planes of float32 in NCHW, where a register holds columns (depthwise_planes.h). Of others, of
// narrow planes, two different strides and 16 bits, a block of channels at a time is copied to a slab
// (depthwise_slab.h).
#pragma once

#include "cpu/depthwise_conv2d.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/depthwise_planes.h"
#include "cpu/kernels/depthwise_slab.h"
#include "cpu/kernels/depthwise_tile.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/scratch.h"

namespace cnnfast::CNNFAST_ISA {

// What a unit works on is to stay near the first cache level, a band of all channels, where they lie together, in the
// second.
constexpr int64_t kDepthwiseSlabBytes = 48 << 10, kDepthwiseBandBytes = 640 << 10;
// Rows that take more even one at a time are left to implicit GEMM, which cuts them.
constexpr int64_t kMostDepthwiseBytes = 16 << 20;

// The slab of a unit of a gather; in place there is none.
template <class A>
struct DepthwiseScratch {
  int64_t source_rows, source_columns;
  A *source, *result;

  DepthwiseScratch(Scratch& scratch, const Conv2dShape& s, const DepthwiseAxes& axes, const DepthwisePlan& plan,
                   bool input_gradient)
      : source_rows(axes.h.span(plan.band)), source_columns(axes.w.span(axes.w.outputs)) {
    if (input_gradient) source_columns = max(source_columns, s.Q - axes.w.low);
    if (plan.in_place) source_rows = source_columns = 0;
    const int64_t result_rows = plan.in_place ? 0 : plan.band * axes.h.parts;
    source = scratch.take<A>(source_rows * source_columns * kLanes<A>);
    result = scratch.take<A>(result_rows * (input_gradient ? s.W : s.Q) * kLanes<A>);
  }
};

// What a task does at a time: of channels one register, or in place all of the task.
struct DepthwiseUnit {
  int64_t n, c, channels;
  int64_t first, rows;  // outputs of part 0, and of others as far as there are any
};

// The first channel of a block: in place, the last one overlaps its neighbour.
template <class A>
static int64_t first_channel(const Conv2dShape& s, const DepthwisePlan& plan, int64_t block) {
  return plan.in_place ? min(block * kLanes<A>, s.C - kLanes<A>) : block * kLanes<A>;
}

// The blocks of a task. That which overlaps its neighbour is of the same task, the last.
template <class A>
static void task_blocks(const Conv2dShape& s, const DepthwisePlan& plan, int64_t task, int64_t* first, int64_t* last) {
  const int64_t group = task % plan.groups, blocks = plan.in_place ? s.C / kLanes<A> : plan.blocks;
  *first = group * blocks / plan.groups;
  *last = group + 1 == plan.groups ? plan.blocks : (group + 1) * blocks / plan.groups;
}

// Calls body(unit, its first block) for each unit of a task.
template <class A, class Body>
static void for_each_unit(const Conv2dShape& s, const DepthwisePlan& plan, int64_t task, const Body& body) {
  const int64_t slice = task / plan.groups, pairs = s.N * plan.bands;
  int64_t first_block, last_block;
  task_blocks<A>(s, plan, task, &first_block, &last_block);
  for (int64_t pair = slice * pairs / plan.slices; pair < (slice + 1) * pairs / plan.slices; ++pair) {
    const int64_t band = pair % plan.bands, first = band * plan.band;
    const int64_t rows = band + 1 == plan.bands ? plan.rows - first : plan.band;
    const int64_t step = plan.in_place ? last_block - first_block : 1;
    for (int64_t block = first_block; block < last_block; block += step) {
      const int64_t c = block * kLanes<A>, end = min((block + step) * kLanes<A>, s.C);
      body(DepthwiseUnit{pair / plan.bands, c, end - c, first, rows}, block);
    }
  }
}

// Row `row` of an image: of which a slab holds a window,
template <class A>
static DepthwiseSource<A> slab_source(const SlabWindow& window, const A* slab, int64_t row) {
  const int64_t pitch = window.columns * kLanes<A>;
  return {slab - window.top * pitch - window.left * kLanes<A>, pitch, kLanes<A>, row, 0, window.H, window.W};
}

// or which is read in place.
template <class A>
static DepthwiseSource<A> image_source(const DepthwiseUnit& unit, int64_t row, View<const A> image, int64_t H,
                                       int64_t W) {
  return {image.at(unit.n, unit.c, 0, 0), image.stride.h, image.stride.w, row, 0, H, W};
}

// From the unit's source to an output of H x W. `result` is where results go that cannot be written in place.
template <class T>
static void depthwise_unit(const DepthwiseAxes& axes, const DepthwiseSource<Compute<T>>& source,
                           const DepthwiseUnit& unit, const Compute<T>* weight, const Epilogue<T>& epilogue,
                           View<T> output, int64_t H, int64_t W, Compute<T>* result) {
  using A = Compute<T>;
  const int64_t top = unit.first * axes.h.parts, rows = min(unit.rows * axes.h.parts, H - top);
  if (rows <= 0) return;
  A* out = result;
  int64_t pitch = W * kLanes<A>, pixel = kLanes<A>;
  if constexpr (std::is_same_v<T, A>) {
    if (output.stride.c == 1 && unit.channels >= kLanes<A>) {
      out = output.at(unit.n, unit.c, top, 0);
      pitch = output.stride.h, pixel = output.stride.w;
    }
  }
  const bool in_place = out != result;
  if (!in_place)
    prefetch_for_writing(View<T>{output.at(0, unit.c, 0, 0), output.stride}, unit.n, unit.channels, top, rows, W);
  for (int64_t a = 0; a < axes.h.parts; ++a) {
    const GatherAxis& h = axes.h.part[a];
    for (int64_t b = 0; b < axes.w.parts; ++b) {
      const GatherAxis& w = axes.w.part[b];
      depthwise_rows<A>(h.taps, axes.h.step,
                        {source.moved(h.origin, w.origin), axes.w.step, w.taps, weight, axes.packed_size * kLanes<A>,
                         epilogue.clip(), out + a * pitch + b * pixel, axes.h.parts * pitch, axes.w.parts * pixel,
                         min(unit.rows, h.outputs - unit.first), w.outputs, max<int64_t>(unit.channels, kLanes<A>)});
      weight += (1 + h.taps * w.taps) * kLanes<A>;
    }
  }
  if (!in_place) write_slab({unit.n, unit.c, unit.channels, top, rows, 0, W, H, W}, out, output);
  finish_box(epilogue, output, {unit.n, unit.c, unit.channels, top, rows, 0, W});
}

template <class T>
static void depthwise_gather(const DepthwiseGather<T>& job, int64_t task, char* workspace) {
  using A = Compute<T>;
  const Conv2dShape& s = job.conv;
  if constexpr (std::is_same_v<T, float>) {
    if (job.plan.by_columns) return depthwise_planes(job, task);
  }
  const bool backward = job.input_gradient;
  const int64_t H = backward ? s.P : s.H, W = backward ? s.Q : s.W;
  const DepthwiseAxes axes(s, backward);
  Scratch memory(workspace);
  const DepthwiseScratch<A> slab(memory, s, axes, job.plan, backward);
  for_each_unit<A>(s, job.plan, task, [&](const DepthwiseUnit& unit, int64_t block) {
    const int64_t row = unit.first * axes.h.step;
    DepthwiseSource<A> source;
    if constexpr (std::is_same_v<T, A>) {
      if (job.plan.in_place) source = image_source(unit, row, job.source, H, W);
    }
    if (!job.plan.in_place) {
      const SlabWindow window{
          unit.n, unit.c, unit.channels, row + axes.h.low, axes.h.span(unit.rows), axes.w.low, slab.source_columns,
          H,      W};
      fill_slab(window, job.source, slab.source);
      source = slab_source(window, slab.source, row);
    }
    depthwise_unit(axes, source, unit, job.packed_weight + block * axes.packed_size * kLanes<A>, job.epilogue,
                   job.output, backward ? s.H : s.P, backward ? s.W : s.Q, slab.result);
  });
}

static bool is_depthwise(const Conv2dShape& s, int64_t lanes) {
  const auto size = [](int64_t kernel) { return kernel == 3 || kernel == 5 || kernel == 7; };
  const auto stride = [](int64_t step) { return step == 1 || step == 2; };
  return s.G == s.C && s.K == s.C && 2 * s.C > lanes && size(s.R) && size(s.S) && stride(s.stride_h) &&
         stride(s.stride_w) && s.dilation_h == 1 && s.dilation_w == 1;
}

// bytes(plan): a task's scratch.
template <class T, class Bytes>
static DepthwisePlan cut_depthwise(const Conv2dShape& s, const DepthwiseAxes& axes, DepthwiseLayout layout,
                                   int64_t most_tasks, const Bytes& bytes) {
  using A = Compute<T>;
  DepthwisePlan plan{};
  plan.in_place = layout == DepthwiseLayout::in_place && std::is_same_v<T, A> && s.C >= kLanes<A>;
  plan.blocks = ceil_div(s.C, kLanes<A>);
  plan.packed_weight = plan.blocks * kLanes<A> * axes.packed_size;
  plan.sums = plan.blocks * kLanes<A> * (s.R * s.S + 1);
  plan.rows = max(max(axes.h.outputs, s.P), int64_t{1});
  const int64_t products = s.C * s.R * s.S * s.P * s.Q;
  const auto source_bytes = [&](int64_t band) {
    return axes.h.span(band) * s.W * s.C * static_cast<int64_t>(sizeof(A));
  };
  if (plan.in_place) {
    // Whole rows of all channels, read in the order of memory, before groups of channels, whose rows are read in
    // pieces: of those no more than keep all threads busy. The last band takes the rest.
    const int64_t wanted = max<int64_t>(1, min(most_tasks, s.N * products / kDepthwiseTaskProducts));
    const int64_t bands =
        max(ceil_div(wanted, max<int64_t>(s.N, 1)), ceil_div(source_bytes(plan.rows), kDepthwiseBandBytes));
    plan.band = max(plan.rows / bands / kDepthwiseRows * kDepthwiseRows, min<int64_t>(plan.rows, kDepthwiseRows));
    plan.bands = plan.rows / plan.band;
    plan.slices = max<int64_t>(1, min(s.N * plan.bands, wanted));
    plan.groups = min(s.C / kLanes<A>, ceil_div(min(wanted, kTasks), plan.slices));
  } else {
    plan.band = band_of(plan.rows, s.N * plan.blocks, products / plan.rows, [&](int64_t band) {
      plan.band = band;
      return bytes(plan) <= kDepthwiseSlabBytes &&
             (layout != DepthwiseLayout::channels_last_source || source_bytes(band) <= kDepthwiseBandBytes);
    });
    if (plan.band < plan.rows) plan.band = round_up(plan.band, kDepthwiseRows);
    plan.bands = ceil_div(plan.rows, plan.band);
    const int64_t wanted = max<int64_t>(1, min(most_tasks, s.N * products / kTaskProducts));
    plan.slices = max<int64_t>(1, min(s.N * plan.bands, wanted));
    plan.groups = min(plan.blocks, ceil_div(wanted, plan.slices));
  }
  plan.workspace_bytes = bytes(plan);
  return plan;
}

template <class T>
static bool depthwise_plan(const Conv2dShape& s, bool input_gradient, DepthwiseLayout layout, DepthwisePlan* plan) {
  using A = Compute<T>;
  if (!is_depthwise(s, kLanes<A>)) return false;
  const DepthwiseAxes axes(s, input_gradient);
  if constexpr (std::is_same_v<T, float>) {
    if (layout == DepthwiseLayout::columns && depthwise_planes_plan(s, axes, plan)) return true;
  }
  *plan = cut_depthwise<T>(s, axes, layout, kMostDepthwiseTasks, [&](const DepthwisePlan& cut) {
    Scratch scratch(nullptr);
    DepthwiseScratch<A>(scratch, s, axes, cut, input_gradient);
    return static_cast<int64_t>(scratch.used());
  });
  return plan->workspace_bytes <= kMostDepthwiseBytes;
}

// taps[tap][lane] = weight of tap, R x S, of channel c + lane: zero beyond the last.
template <class T>
static void gather_taps(const Conv2dShape& s, View<const T> weight, int64_t c, Compute<T>* taps) {
  constexpr int64_t kPixel = kLanes<Compute<T>>;
  if constexpr (std::is_same_v<T, float>) {
    if (c + kPixel <= s.C && weight.stride.w == 1 && weight.stride.h == s.S)
      return transpose(weight.at(c, 0, 0, 0), weight.stride.n, kPixel, s.R * s.S, taps, kPixel);
  }
  for (int64_t tap = 0; tap < s.R * s.S; ++tap)
    for (int64_t l = 0; l < kPixel; ++l)
      *taps++ = c + l < s.C ? load(weight.at(c + l, 0, tap / s.S, tap % s.S)) : Compute<T>(0);
}

// For each block of channels and each part: bias, then the taps column by column.
template <class T>
static void pack_depthwise(const Conv2dShape& s, const DepthwisePlan& plan, bool input_gradient, View<const T> weight,
                           const T* bias, Compute<T>* packed) {
  using A = Compute<T>;
  constexpr int64_t kPixel = kLanes<A>;
  const DepthwiseAxes axes(s, input_gradient);
  if constexpr (std::is_same_v<T, float>) {
    if (plan.by_columns) return pack_depthwise_planes(s, axes, weight, bias, packed);
  }
  A taps[kMostDepthwiseTaps * kPixel];
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const int64_t c = first_channel<A>(s, plan, block);
    gather_taps(s, weight, c, taps);
    for (int64_t a = 0; a < axes.h.parts; ++a) {
      const GatherAxis& h = axes.h.part[a];
      for (int64_t b = 0; b < axes.w.parts; ++b) {
        const GatherAxis& w = axes.w.part[b];
        for (int64_t l = 0; l < kPixel; ++l) *packed++ = bias != nullptr && c + l < s.C ? load(bias + c + l) : A(0);
        for (int64_t j = 0; j < w.taps; ++j) {
          for (int64_t i = 0; i < h.taps; ++i, packed += kPixel) {
            const int64_t r = h.first_tap + i * h.tap_stride, column = w.first_tap + j * w.tap_stride;
            store_vec(packed, load_vec(taps + (r * s.S + column) * kPixel));
          }
        }
      }
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
