// GatherConv by `implicit_gemm`: the forward pass of conv2d, and its input gradient.
//
//   output[m, pixel] = sum over (c, tap) of weight[m, (c, tap)] * staged[(c, tap), pixel]
//
// One task owns a block of pixels for some panels of output channels in one group. Per block of source channels it
// stages what the pixels read, unless they read it as it lies; per panel of pixels it packs all taps and multiplies
// them with every weight panel, so that the packed pixels stay in L1 and the weights stream from L2. Vectorised along
// pixels.
#pragma once

#include "cpu/conv2d.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/indirect_gather.h"
#include "cpu/kernels/scratch.h"
#include "cpu/kernels/staging.h"

namespace cnnfast::CNNFAST_ISA {

// A task's staged source and tiles are to stay in L2 beside the weights that stream through.
constexpr size_t kTaskBytes = size_t{320} << 10;
// Pixels of a block at most; more would only make the staged rows fall out of L2.
constexpr int64_t kBlockPixels = 512;

static inline PixelBlocks cut_pixels(const GatherConv& conv, int64_t size, int64_t multiple) {
  const int64_t Q = conv.w.outputs;
  if (Q < size) return {size, ceil_div(conv.pixels(), size), 0};
  const int64_t part = round_up(even_part(Q, size), multiple), per_row = max(ceil_div(Q, part), int64_t{1});
  return {part, conv.N * conv.h.outputs * per_row, per_row};
}

template <class A>
struct GatherScratch {
  PixelRun* runs;
  LaneRun<A>* lanes;    // of all panels, one after another
  int64_t* outputs;     // of each run of lanes, its offset in the output
  int64_t* panel_runs;  // where each panel's runs begin
  const A** rows;       // where each (c, tap) begins in the source, staged or not
  A *staged, *panel, *tiles;
  size_t bytes;

  GatherScratch(void* memory, const GatherConv& conv, const GatherPlan& plan) {
    Scratch scratch(memory);
    const int64_t run_count = max_runs(conv, plan.pixels), panel_count = plan.pixels.size / kPanelWidth<A>;
    const int64_t depth = plan.channels * conv.taps();
    const int64_t tile_count = plan.channel_blocks > 1 ? panel_count * ceil_div(plan.panels, plan.panel_blocks) : 1;
    runs = scratch.take<PixelRun>(run_count);
    lanes = scratch.take<LaneRun<A>>(run_count + panel_count);
    outputs = scratch.take<int64_t>(run_count + panel_count);
    panel_runs = scratch.take<int64_t>(panel_count + 1);
    rows = scratch.take<const A*>(depth);
    staged = scratch.take<A>(plan.in_place ? 0 : plan.channels * max_staged(conv, plan.pixels) + kPanelWidth<A>);
    panel = scratch.take<A>((depth + 1) * kPanelWidth<A>);
    tiles = scratch.take<A>(tile_count * kTileSize<A>);
    bytes = scratch.used();
  }
};

// Whether an axis' first tap never meets the padding.
static inline bool inside(const GatherAxis& axis) {
  return axis.origin >= 0 && axis.origin + (axis.outputs - 1) * axis.step < axis.size;
}

template <class T>
static GatherPlan gather_plan(const GatherConv& conv, const Strides& source, const Strides& output) {
  using A = Compute<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (has_rows<T>(conv, source) && output.c == 1) return indirect_plan<A>(conv);
  }
  GatherPlan plan{};
  plan.in_place =
      std::is_same_v<T, A> && source.w == 1 && conv.w.step == 1 && conv.taps() == 1 && inside(conv.h) && inside(conv.w);
  const int64_t taps = max(conv.taps(), int64_t{1}), pixels = conv.pixels();
  plan.channels = max(even_part(conv.C, max(kDepth / taps, int64_t{1})), int64_t{1});
  plan.channel_blocks = max(ceil_div(conv.C, plan.channels), int64_t{1});
  plan.panels = RowPanels(conv.M).count;
  plan.panel_blocks = 1;
  plan.packed_weight = conv.G * conv.M * conv.C * conv.taps();

  const auto fit = [&](int64_t size) {
    plan.pixels = cut_pixels(conv, size, kPanelWidth<A>);
    plan.scratch_bytes = GatherScratch<A>(nullptr, conv, plan).bytes;
  };
  int64_t size = min(kBlockPixels, max(round_up(pixels, kPanelWidth<A>), int64_t{kPanelWidth<A>}));
  fit(size);
  while (plan.scratch_bytes > kTaskBytes && size > kPanelWidth<A>) fit(size -= kPanelWidth<A>);

  // Few pixels: heavy weights are divided, each task streaming its own and packing the pixels again; else the pixels.
  const int64_t products = conv.M * conv.C * taps * pixels;
  const int64_t wanted = ceil_div(max(min(kTasks, conv.G * products / kTaskProducts), int64_t{1}), conv.G);
  if (pixels < 2 * wanted * kPanelWidth<A> && plan.pixels.count < wanted &&
      conv.M * conv.C * taps * static_cast<int64_t>(sizeof(A)) > int64_t{1} << 18) {
    plan.panel_blocks = max(min(plan.panels / 8, ceil_div(wanted, max(plan.pixels.count, int64_t{1}))), int64_t{1});
  }
  if (pixels > 0 && plan.pixels.count * plan.panel_blocks < wanted) {
    size = min(size, round_up(ceil_div(pixels * plan.panel_blocks, wanted), kPanelWidth<A>));
  }
  fit(size);
  plan.tasks = conv.M == 0 ? 0 : conv.G * plan.panel_blocks * plan.pixels.count;
  return plan;
}

// Packed weights: [group][block of source channels][panel][(c, tap)][row of the panel]. Where a panel starts:
static inline int64_t packed_offset(const GatherConv& conv, const GatherPlan& plan, int64_t g, int64_t channel,
                                    int64_t panel) {
  const int64_t channels = min(plan.channels, conv.C - channel);
  return (g * conv.M * conv.C + conv.M * channel + RowPanels(conv.M).begin(panel) * channels) * conv.taps();
}

// Whether the (c, tap) of an output channel lie one after another.
template <class T>
static bool lies_in_order(const GatherConv& conv, const GatherWeight<const T>& weight) {
  const auto in_order = [](const GatherAxis& axis) {
    return axis.taps == 1 || (axis.first_tap == 0 && axis.tap_stride == 1);
  };
  return in_order(conv.h) && in_order(conv.w) && (conv.w.taps == 1 || weight.s == 1) &&
         (conv.h.taps == 1 || weight.r == conv.w.taps) && (conv.C == 1 || weight.c == conv.taps());
}

template <class T>
static void pack_weight(const GatherConv& conv, const GatherPlan& plan, GatherWeight<const T> weight,
                        Compute<T>* packed, int64_t index) {
  if (plan.indirect) return pack_indirect_weight(conv, plan, weight, packed, index);
  const int64_t g = index / plan.panels, panel = index % plan.panels;
  const RowPanels panels(conv.M);
  const int64_t m = panels.begin(panel), rows = panels.begin(panel + 1) - m;
  for (int64_t channel = 0; channel < conv.C; channel += plan.channels) {
    const int64_t end = min(channel + plan.channels, conv.C);
    Compute<T>* to = packed + packed_offset(conv, plan, g, channel, panel);
    if constexpr (std::is_same_v<T, Compute<T>> && sizeof(T) == 4) {
      if (lies_in_order(conv, weight)) {
        const T* from = weight.data + g * weight.group + m * weight.m + channel * weight.c +
                        conv.h.first_tap * weight.r + conv.w.first_tap * weight.s;
        transpose(from, weight.m, rows, (end - channel) * conv.taps(), to, rows);
        continue;
      }
    }
    for (int64_t c = channel; c < end; ++c) {
      for (int64_t i = 0; i < conv.h.taps; ++i) {
        for (int64_t j = 0; j < conv.w.taps; ++j, to += rows) {
          const int64_t r = conv.h.first_tap + i * conv.h.tap_stride, s = conv.w.first_tap + j * conv.w.tap_stride;
          const T* from = weight.data + g * weight.group + m * weight.m + c * weight.c + r * weight.r + s * weight.s;
          for (int64_t row = 0; row < rows; ++row) to[row] = load(from + row * weight.m);
        }
      }
    }
  }
}

// Cuts the runs of a block at panel boundaries; returns the number of panels.
template <class A>
static int64_t runs_to_panels(const GatherConv& conv, const GatherPlan& plan, const GatherScratch<A>& s, int64_t count,
                              const Strides& source, const Strides& output) {
  int64_t panel = 0, at = 0;
  s.panel_runs[0] = 0;
  for (const PixelRun* run = s.runs; run < s.runs + count; ++run) {
    const int64_t h = run->i * conv.h.step + conv.h.origin, w = run->j + conv.w.origin;
    const int64_t start = plan.in_place ? run->n * source.n + h * source.h + w : run->staged;
    for (int64_t done = 0; done < run->count;) {
      const int64_t pixel = run->first + done, lane = pixel % kPanelWidth<A>;
      const int64_t lanes = min(run->count - done, kPanelWidth<A> - lane);
      s.lanes[at] = {lane, lanes, s.rows, start + done};
      s.outputs[at++] = run->n * output.n + run->i * output.h + (run->j + done) * output.w;
      panel = pixel / kPanelWidth<A>;
      s.panel_runs[panel + 1] = at;
      done += lanes;
    }
  }
  return count == 0 ? 0 : panel + 1;
}

// output = tile + bias, and what the activation makes of it.
template <class T>
static void write_tile(const Compute<T>* tile, int64_t rows, const LaneRun<Compute<T>>* lanes, const int64_t* outputs,
                       int64_t count, const T* bias, Activation activation, T* output, const Strides& stride) {
  using A = Compute<T>;
  const A low = lowest_of<A>(activation), high = highest_of<A>(activation);
  const Clip<A> clip(activation);
  const auto finish = [&](A x) { return x < low ? low : x > high ? high : x; };
  for (int64_t r = 0; r < rows; ++r) {
    const A shift = bias == nullptr ? A(0) : load(bias + r);
    for (int64_t i = 0; i < count; ++i) {
      const A* from = tile + r * kPanelWidth<A> + lanes[i].lane;
      T* to = output + r * stride.c + outputs[i];
      if constexpr (std::is_same_v<T, A>) {
        if (stride.w == 1 && lanes[i].count >= kLanes<A>) {  // the last register overlaps its neighbour
          for (int64_t l = 0; l < lanes[i].count; l += kLanes<A>) {
            l = min(l, lanes[i].count - kLanes<A>);
            store_vec(to + l, clip(load_vec(from + l) + broadcast(shift)));
          }
          continue;
        }
      }
      if (stride.w == 1 && lanes[i].count == kPanelWidth<A>) {  // a trip count known to the compiler
        for (int l = 0; l < kPanelWidth<A>; ++l) store(to + l, finish(from[l] + shift));
      } else if (stride.w == 1) {
        for (int64_t l = 0; l < lanes[i].count; ++l) store(to + l, finish(from[l] + shift));
      } else {
        for (int64_t l = 0; l < lanes[i].count; ++l) store(to + l * stride.w, finish(from[l] + shift));
      }
    }
  }
}

// The same for a tile that lies in the output as in registers, straight from these; through the epilogue, too.
template <class A>
static void multiply_to_output(int64_t rows, int64_t depth, const A* weight, const A* panel, A* output, int64_t out_row,
                               bool accumulate, const A* bias, const Epilogue<A>& epilogue) {
  const Area area{rows, out_row, kPanelWidth<A>, 1};
  prefetch_residual(epilogue, area);
  const Epilogue<A> rest = epilogue.activation;
  const Clip<A> clip(rest.clip());
  const auto finished = [&](Vec<A> sum, int r, int v) CNNFAST_INLINE_LAMBDA {
    if (bias != nullptr) sum += broadcast(bias[r]);
    if (epilogue.residual != nullptr) sum += load_vec(epilogue.residual + r * out_row + v * kLanes<A>);
    return clip(sum);
  };
  with_constant<1, kTileRows>(rows, [&](auto count) {
    multiply_tile<A, count.value, kTileVectors>(depth, weight, 1, count.value, panel, kPanelWidth<A>, output, out_row,
                                                accumulate, finished);
  });
  finish(rest, output, output, area);
}

template <class T>
static void gather(const GatherConv& conv, const GatherPlan& plan, View<const T> source, const Compute<T>* packed,
                   const T* bias, const Epilogue<T>& epilogue, View<T> output, void* memory, int64_t task) {
  using A = Compute<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (plan.indirect) return indirect_gather(conv, plan, source, packed, bias, epilogue, output, memory, task);
  }
  const int64_t block = task % plan.pixels.count, part = task / plan.pixels.count % plan.panel_blocks;
  const int64_t g = task / plan.pixels.count / plan.panel_blocks;
  const int64_t panel_begin = part * plan.panels / plan.panel_blocks;
  const int64_t panel_end = (part + 1) * plan.panels / plan.panel_blocks;
  const RowPanels panels(conv.M);
  const GatherScratch<A> s(memory, conv, plan);

  const int64_t run_count = block_runs(conv, plan.pixels, block, s.runs);
  const int64_t pixel_panels = runs_to_panels(conv, plan, s, run_count, source.stride, output.stride);
  const int64_t channel_stride = max_staged(conv, plan.pixels);
  const StagedLayout layout(conv, plan.pixels);
  const A** row = s.rows;
  for (int64_t c = 0; c < plan.channels && !plan.in_place; ++c) {
    for (int64_t i = 0; i < conv.h.taps; ++i) {
      for (int64_t j = 0; j < conv.w.taps; ++j) *row++ = s.staged + c * channel_stride + layout.tap(i, j);
    }
  }

  const T* const whole_output = output.data;
  source.data += g * conv.C * source.stride.c;
  output.data += g * conv.M * output.stride.c;
  if (bias != nullptr) bias += g * conv.M;
  for (int64_t kb = 0; kb < plan.channel_blocks; ++kb) {
    const int64_t c = kb * plan.channels, channels = min(plan.channels, conv.C - c), depth = channels * conv.taps();
    const bool last = kb + 1 == plan.channel_blocks;
    const Epilogue<T> now = last ? epilogue : Activation::none;
    View<const T> part_source = source;
    part_source.data += c * source.stride.c;
    if (!plan.in_place) {
      stage(conv, plan.pixels, s.runs, run_count, part_source, channels, s.staged, channel_stride, 1);
    } else if constexpr (std::is_same_v<T, A>) {
      for (int64_t k = 0; k < channels; ++k) s.rows[k] = part_source.data + k * source.stride.c;
    }
    A* tile = s.tiles;
    for (int64_t panel = 0; panel < pixel_panels; ++panel) {
      const int64_t first = s.panel_runs[panel], count = s.panel_runs[panel + 1] - first;
      const bool whole = output.stride.w == 1 && count == 1 && s.lanes[first].count == kPanelWidth<A>;
      const int64_t parts = panel_end - panel_begin;
      pack_panel<A, kTileVectors>(0, depth, s.lanes + first, count, plan.in_place, s.panel);
      for (int64_t p = panel_begin; p < panel_end; ++p) {
        const int64_t m = panels.begin(p), rows = panels.begin(p + 1) - m;
        if (plan.in_place && panel + 1 < pixel_panels) {
          const int64_t offset = s.lanes[first + count].offset;
          for (int64_t k = (p - panel_begin) * depth / parts; k < (p - panel_begin + 1) * depth / parts; ++k)
            __builtin_prefetch(s.rows[k] + offset + kPanelWidth<A> - 1, 0, 2);
        }
        const A* weight = packed + packed_offset(conv, plan, g, c, p);
        const T* shift = last && bias != nullptr ? bias + m : nullptr;
        T* to = output.data + m * output.stride.c;
        if constexpr (std::is_same_v<T, A>) {
          if (whole) {
            for (int64_t r = 0; r < rows; ++r) {
              const A* line = to + s.outputs[first] + r * output.stride.c;
              __builtin_prefetch(line, 1, 3);
              __builtin_prefetch(line + kPanelWidth<A> - 1, 1, 3);
            }
            T* tile_output = to + s.outputs[first];
            multiply_to_output(rows, depth, weight, s.panel, tile_output, output.stride.c, kb > 0, shift,
                               now.from(tile_output - whole_output));
            continue;
          }
        }
        multiply(rows, depth, weight, s.panel, tile, kb > 0);
        if (last) {
          write_tile(tile, rows, s.lanes + first, s.outputs + first, count, shift, now.clip(), to, output.stride);
          for (int64_t i = first; i < first + count; ++i) {
            finish(now, whole_output, to + s.outputs[i], {rows, output.stride.c, s.lanes[i].count, output.stride.w});
          }
        }
        if (plan.channel_blocks > 1) tile += kTileSize<A>;
      }
    }
  }
}

}  // namespace cnnfast::CNNFAST_ISA
