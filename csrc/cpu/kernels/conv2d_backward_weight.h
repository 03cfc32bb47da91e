// The weight gradient of conv2d by `implicit_gemm`, and the bias gradient.
//
//   grad_weight[m, (tap, c)] = sum over pixels of grad_output[m, pixel] * source[pixel, (tap, c)]
//
// One task owns, for one slice of the pixel blocks, some panels of output channels times a block of source channels
// with all taps. Per block of pixels it packs grad_output once, unless it is read where it lies, and each panel of
// columns (tap, c) once, and multiplies them all. Columns of one tap are to lie contiguous: a source in channels_last
// is packed from there, another one staged that way. The slices depend on the shape only and are added in their order.
#pragma once

#include "cpu/kernels/conv2d_forward.h"
#include "cpu/kernels/prefetch.h"

namespace cnnfast::CNNFAST_ISA {

// Columns (tap, c), source channels and panels of output channels of a task: its sums, packed gradients and source stay
// in L2.
constexpr int64_t kGradColumns = 576, kGradChannels = 256, kGradPanels = 22;
// Rows of a register tile. With 32 registers there is room for 24 sums, and of six rows the loads are the bound.
constexpr int kGradRows = kWideRegisters ? 2 * kTileRows : kTileRows;
// Pixels farther apart than this (1 KB in float) share too few sets of the caches for a block of them to stay there.
constexpr int64_t kInPlaceChannels = 256;
// Pixels packed at a time: the processor prefetches what is read in the order of memory.
constexpr int64_t kPackedPixels = 16;

template <class A>
static int64_t column_panels(const GatherConv& conv, int64_t channels) {
  return LanePanels<A>(channels * conv.taps()).count;
}

template <class A>
struct WeightGradScratch : private Scratch {
  PixelRun* runs;
  LaneRun<A>* lanes;    // runs of columns, of all panels
  int64_t* panel_runs;  // where each panel's runs begin
  RowTable<A> table;    // if staged, of the first tap only
  A *staged, *panel, *gradient;
  size_t bytes;

  WeightGradScratch(void* memory, const GatherConv& conv, const WeightGradPlan& plan)
      : Scratch(memory),
        runs(take<PixelRun>(max_runs(conv, plan.pixels))),
        lanes(take<LaneRun<A>>(column_panels<A>(conv, plan.channels) + conv.taps())),
        panel_runs(take<int64_t>(column_panels<A>(conv, plan.channels) + 1)),
        table(*this, conv, plan.pixels) {
    staged = take<A>(plan.indirect ? 0 : plan.channels * max_staged(conv, plan.pixels) + kPanelWidth<A>);
    panel =
        take<A>(column_panels<A>(conv, plan.channels) * plan.panel_distance + (plan.pixels.size * 3 + 1) * kLanes<A>);
    gradient = take<A>(ceil_div(plan.panels, plan.panel_blocks) * kGradRows * plan.pixels.size);
    bytes = used();
  }
};

template <class T>
static WeightGradPlan weight_grad_plan(const GatherConv& conv, const Strides& source) {
  using A = Compute<T>;
  WeightGradPlan plan{};
  const int64_t taps = max(conv.taps(), int64_t{1}), pixels = conv.pixels();
  plan.indirect = has_rows<T>(conv, source);
  plan.pixels = cut_pixels(conv, kDepth, 1);
  if (plan.indirect) {
    const int64_t size = max(even_part(pixels, kDepth), int64_t{1});
    plan.pixels = {size, ceil_div(pixels, size), 0};
  }
  plan.channels = max(even_part(conv.C, max(min(kGradColumns / taps, kGradChannels), int64_t{1})), int64_t{1});
  plan.channel_blocks = ceil_div(conv.C, plan.channels);
  plan.panels = RowPanels(conv.M, kGradRows).count;
  plan.panel_blocks = max(ceil_div(plan.panels, kGradPanels), int64_t{1});
  // Few multiplications for each pixel: memory is the bound, and panels are packed in its order. Not at a multiple of
  // the caches' size, at which they would compete for the same lines.
  if (plan.indirect && taps == 1 && plan.panel_blocks <= 2)
    plan.panel_distance = (2 * plan.pixels.size + 2) * kLanes<A>;
  plan.blocks = conv.G * plan.panel_blocks * plan.channel_blocks;
  plan.block_size =
      ceil_div(plan.panels, plan.panel_blocks) * kGradRows * LanePanels<A>(plan.channels * conv.taps()).padded();
  const int64_t bytes = plan.blocks * plan.block_size * static_cast<int64_t>(sizeof(A));
  plan.slices = min(reduction_slices(plan.pixels.count, bytes), ceil_div(kTasks, max(plan.blocks, int64_t{1})));
  plan.slices = max(plan.slices, int64_t{1});
  plan.scratch_bytes = WeightGradScratch<A>(nullptr, conv, plan).bytes;
  return plan;
}

// The block a task works on.
struct WeightGradBlock {
  int64_t g, panel_begin, panel_end, c, channels;

  WeightGradBlock(const GatherConv& conv, const WeightGradPlan& plan, int64_t block) {
    const int64_t part = block / plan.channel_blocks % plan.panel_blocks;
    g = block / plan.channel_blocks / plan.panel_blocks;
    c = block % plan.channel_blocks * plan.channels;
    channels = min(plan.channels, conv.C - c);
    panel_begin = part * plan.panels / plan.panel_blocks;
    panel_end = (part + 1) * plan.panels / plan.panel_blocks;
  }
  int64_t panels() const { return panel_end - panel_begin; }
};

// Columns (r, s, c) cut at panel boundaries and where taps do not lie side by side.
template <class A>
static void columns_to_panels(const WeightGradScratch<A>& scratch, const GatherConv& conv, const WeightGradPlan& plan,
                              const WeightGradBlock& block) {
  const StagedLayout layout(conv, plan.pixels);
  const LanePanels<A> panels(block.channels * conv.taps());
  LaneRun<A>* run = scratch.lanes;
  int64_t column = 0, panel = 0;
  scratch.panel_runs[0] = 0;
  for (int64_t tap = 0; tap < conv.taps(); ++tap) {
    const A* const* rows = scratch.table.rows + (plan.indirect ? tap * plan.pixels.size : 0);
    const int64_t offset = plan.indirect ? block.c : layout.tap(tap / conv.w.taps, tap % conv.w.taps) * block.channels;
    for (int64_t c = 0, count; c < block.channels; c += count, column += count) {
      if (column == panels.begin(panel) + panels.lanes(panel)) ++panel;
      const int64_t lane = column - panels.begin(panel);
      count = min(block.channels - c, panels.lanes(panel) - lane);
      LaneRun<A>* previous = run - 1;
      if (lane > 0 && previous->rows == rows && previous->offset + previous->count == offset + c) {
        previous->count += count;
      } else {
        *run++ = {lane, count, rows, offset + c};
      }
      scratch.panel_runs[panel + 1] = run - scratch.lanes;
    }
  }
}

// A panel of grad_output as it is multiplied: in the tensor, or packed so that the pixels of a row are neighbours, if
// they are so in the tensor, or the rows of a pixel.
template <class A>
struct GradientPanel {
  const A* data;
  int64_t row, pixel;

  GradientPanel(A* packed, const Strides& gradient, int64_t rows, int64_t pixels)
      : data(packed), row(gradient.w == 1 ? pixels : 1), pixel(gradient.w == 1 ? 1 : rows) {}
  GradientPanel(const A* in_place, int64_t distance) : data(in_place), row(1), pixel(distance) {}
};

// Whether all pixels lie at one distance, channels side by side.
template <class T>
static bool gradient_in_place(const GatherConv& conv, const Strides& gradient) {
  return std::is_same_v<T, Compute<T>> && gradient.c == 1 && gradient.w <= kInPlaceChannels &&
         gradient.h == conv.w.outputs * gradient.w && gradient.n == conv.h.outputs * gradient.h;
}

// to[k * panel.row + q * panel.pixel] = from[channel k, pixel q]
template <class T>
static void pack_gradient(const T* from, const Strides& stride, int64_t pixels, int64_t rows,
                          const GradientPanel<Compute<T>>& panel, Compute<T>* to) {
  if (stride.w == 1) return copy_block(from, 1, stride.c, to, panel.row, pixels, rows);
  with_constant<1, kGradRows>(rows, [&](auto count) {
    for (int64_t q = 0; q < pixels; ++q, from += stride.w, to += count.value) {
      if constexpr (std::is_same_v<T, Compute<T>>) {
        if (stride.c == 1) {
          __builtin_memcpy(to, from, count.value * sizeof(T));
          continue;
        }
      }
      for (int k = 0; k < count.value; ++k) to[k] = load(from + k * stride.c);
    }
  });
}

// Asks for gradients that are multiplied where they lie: a panel reads a few channels of each pixel, and the processor
// does not see where that is going.
template <class A>
static void prefetch_pixels(const A* first, int64_t distance, int64_t channels, int64_t pixels) {
  constexpr int64_t kLine = kLineBytes / sizeof(A);
  for (int64_t q = 0; q < pixels; ++q, first += distance)
    for (int64_t m = 0; m < channels; m += kLine) __builtin_prefetch(first + m);
}

// A panel of gradients times a panel of columns, into a tile that is as wide as these.
template <class A, int kVectors>
static void multiply_columns(int64_t rows, int64_t depth, const GradientPanel<A>& gradient, const A* columns, A* tile,
                             bool accumulate) {
  constexpr int64_t kWidth = kVectors * kLanes<A>;
  constexpr int kMostRows = kVectors > kTileVectors ? kGradRows * 2 / 3 : kGradRows;
  for (int64_t begin = 0, count; begin < rows; begin += count) {
    count = even_part(rows - begin, kMostRows);
    with_constant<1, kMostRows>(count, [&](auto tile_rows) {
      multiply_tile<A, tile_rows.value, kVectors>(depth, gradient.data + begin * gradient.row, gradient.row,
                                                  gradient.pixel, columns, kWidth, tile + begin * kWidth, kWidth,
                                                  accumulate);
    });
  }
}

template <class T>
static void weight_grad(const GatherConv& conv, const WeightGradPlan& plan, View<const T> input,
                        View<const T> grad_output, Compute<T>* partial, void* memory, int64_t task) {
  using A = Compute<T>;
  const WeightGradBlock block(conv, plan, task % plan.blocks);
  const int64_t slice = task / plan.blocks;
  const RowPanels panels(conv.M, kGradRows);
  const LanePanels<A> columns(block.channels * conv.taps());
  const WeightGradScratch<A> s(memory, conv, plan);
  const bool in_place = gradient_in_place<T>(conv, grad_output.stride);
  columns_to_panels(s, conv, plan, block);
  A* sums = partial + task * plan.block_size;

  input.data += block.g * conv.C * input.stride.c;
  grad_output.data += block.g * conv.M * grad_output.stride.c;
  const int64_t begin = slice * plan.pixels.count / plan.slices;
  const int64_t end = (slice + 1) * plan.pixels.count / plan.slices;
  for (int64_t pixel_block = begin; pixel_block < end; ++pixel_block) {
    const int64_t run_count = block_runs(conv, plan.pixels, pixel_block, s.runs);
    const int64_t depth = pixels_of(s.runs, run_count);
    if (!plan.indirect) {
      View<const T> source = input;
      source.data += block.c * input.stride.c;
      stage(conv, plan.pixels, s.runs, run_count, source, block.channels, s.staged, 1, block.channels);
      for (const PixelRun* run = s.runs; run < s.runs + run_count; ++run)
        for (int64_t q = 0; q < run->count; ++q)
          s.table.rows[run->first + q] = s.staged + (run->staged + q) * block.channels;
    } else if constexpr (std::is_same_v<T, A>) {
      s.table.fill(conv, plan.pixels, pixel_block, input);
    }
    const auto packed_gradient = [&](int64_t p) {
      return s.gradient + (p - block.panel_begin) * kGradRows * plan.pixels.size;
    };
    const auto gradient_panel = [&](int64_t p) {
      if constexpr (std::is_same_v<T, A>) {
        if (in_place)
          return GradientPanel<A>(grad_output.at(s.runs[0].n, panels.begin(p), s.runs[0].i, s.runs[0].j),
                                  grad_output.stride.w);
      }
      return GradientPanel<A>(packed_gradient(p), grad_output.stride, panels.rows(p), plan.pixels.size);
    };
    const auto pack_gradients = [&](const PixelRun& run) {
      const int64_t step = grad_output.stride.c == 1 ? kPackedPixels : run.count;
      for (int64_t q = 0; q < run.count; q += step) {
        for (int64_t p = block.panel_begin; p < block.panel_end; ++p) {
          const GradientPanel<A> panel = gradient_panel(p);
          pack_gradient(grad_output.at(run.n, panels.begin(p), run.i, run.j + q), grad_output.stride,
                        min(step, run.count - q), panels.rows(p), panel,
                        packed_gradient(p) + (run.first + q) * panel.pixel);
        }
      }
    };
    if (!in_place) {
      for (int64_t run = 0; run < run_count; ++run) pack_gradients(s.runs[run]);
    }
    const auto pack_column = [&](int64_t column, auto vectors, int64_t pixel, int64_t pixels) {
      const int64_t first = s.panel_runs[column];
      A* to = s.panel + column * plan.panel_distance + pixel * vectors.value * kLanes<A>;
      pack_panel<A, vectors.value>(pixel, pixels, s.lanes + first, s.panel_runs[column + 1] - first, plan.indirect, to);
    };
    const bool all_at_once = plan.panel_distance > 0;
    for (int64_t pixel = 0; pixel < depth && all_at_once; pixel += kPackedPixels) {
      if constexpr (std::is_same_v<T, A>) {
        if (in_place) {
          const A* first = grad_output.at(s.runs[0].n, panels.begin(block.panel_begin), s.runs[0].i, s.runs[0].j);
          prefetch_pixels(first + pixel * grad_output.stride.w, grad_output.stride.w,
                          panels.begin(block.panel_end) - panels.begin(block.panel_begin),
                          min(kPackedPixels, depth - pixel));
        }
      }
      for (int64_t column = 0; column < columns.count; ++column) {
        with_constant<1, 3>(columns.width(column), [&](auto vectors) {
          pack_column(column, vectors, pixel, min(kPackedPixels, depth - pixel));
        });
      }
    }
    for (int64_t column = 0; column < columns.count; ++column) {
      with_constant<1, 3>(columns.width(column), [&](auto vectors) {
        if (!all_at_once) pack_column(column, vectors, 0, depth);
        A* tile = sums + block.panels() * kGradRows * columns.begin(column);
        for (int64_t p = block.panel_begin; p < block.panel_end; ++p, tile += kGradRows * vectors.value * kLanes<A>) {
          multiply_columns<A, vectors.value>(panels.rows(p), depth, gradient_panel(p),
                                             s.panel + column * plan.panel_distance, tile, pixel_block > begin);
        }
      });
    }
  }
}

template <class T>
static void weight_grad_finish(const GatherConv& conv, const WeightGradPlan& plan, Compute<T>* partial,
                               GatherWeight<T> grad_weight, int64_t index) {
  using A = Compute<T>;
  const WeightGradBlock block(conv, plan, index);
  const RowPanels panels(conv.M, kGradRows);
  const LanePanels<A> columns(block.channels * conv.taps());
  A* sums = partial + index * plan.block_size;
  for (int64_t slice = 1; slice < plan.slices; ++slice) {
    const A* more = sums + slice * plan.blocks * plan.block_size;
    for (int64_t i = 0; i < plan.block_size; ++i) sums[i] += more[i];
  }
  // Row by row, so that the writes stay within one output channel's weights.
  for (int64_t p = block.panel_begin; p < block.panel_end; ++p) {
    for (int64_t m = panels.begin(p); m < panels.begin(p + 1); ++m) {
      int64_t column = 0, panel = 0;
      for (int64_t tap = 0; tap < conv.taps(); ++tap) {
        T* to = grad_weight.data + block.g * grad_weight.group + m * grad_weight.m + block.c * grad_weight.c +
                tap / conv.w.taps * grad_weight.r + tap % conv.w.taps * grad_weight.s;
        for (int64_t c = 0, count; c < block.channels; c += count, column += count) {
          if (column == columns.begin(panel) + columns.lanes(panel)) ++panel;
          const int64_t width = columns.width(panel) * kLanes<A>, lane = column - columns.begin(panel);
          count = min(block.channels - c, columns.lanes(panel) - lane);
          const A* from = sums + block.panels() * kGradRows * columns.begin(panel) +
                          ((p - block.panel_begin) * kGradRows + m - panels.begin(p)) * width + lane;
          for (int64_t i = 0; i < count; ++i, to += grad_weight.c) store(to, from[i]);
        }
      }
    }
  }
}

// Sums of sums (rows into images into the whole), so that no chain of additions is longer than a row, a column or the
// batch.
template <class T>
static void bias_grad(View<const T> grad_output, int64_t P, int64_t Q, int64_t begin, int64_t end, int64_t k_begin,
                      int64_t k_end, Compute<T>* sum) {
  using A = Compute<T>;
  constexpr int64_t kChains = 16;
  const Strides& stride = grad_output.stride;
  for (int64_t first = k_begin; first < k_end; first += kChains) {
    const int64_t channels = min(k_end - first, kChains);
    A total[kChains] = {};
    for (int64_t n = begin; n < end; ++n) {
      A image[kChains] = {};
      for (int64_t p = 0; p < P; ++p) {
        A row[kChains] = {};
        if (stride.c == 1 && channels == kChains) {
          const T* x = grad_output.at(n, first, p, 0);
          for (int64_t q = 0; q < Q; ++q, x += stride.w) {
            for (int64_t k = 0; k < kChains; ++k) row[k] += load(x + k);
          }
        } else {
          for (int64_t k = 0; k < channels; ++k) {
            const T* x = grad_output.at(n, first + k, p, 0);
            A chain[kChains] = {};
            int64_t q = 0;
            if (stride.w == 1) {
              for (; q + kChains <= Q; q += kChains) {
                for (int64_t i = 0; i < kChains; ++i) chain[i] += load(x + q + i);
              }
            }
            for (; q < Q; ++q) chain[q % kChains] += load(x + q * stride.w);
            for (int64_t i = 0; i < kChains; ++i) row[k] += chain[i];
          }
        }
        for (int64_t k = 0; k < channels; ++k) image[k] += row[k];
      }
      for (int64_t k = 0; k < channels; ++k) total[k] += image[k];
    }
    for (int64_t k = 0; k < channels; ++k) sum[first + k] = total[k];
  }
}

template <class T>
constexpr Conv2dKernels<T> conv2d_kernels() {
  return {gather_plan<T>, pack_weight<T>,        gather<T>,   weight_grad_plan<T>,
          weight_grad<T>, weight_grad_finish<T>, bias_grad<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
