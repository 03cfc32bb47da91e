// The weight gradient of conv2d by `implicit_gemm`, and the bias gradient.
//
//   grad_weight[m, (tap, c)] = sum over pixels of grad_output[m, pixel] * staged[pixel, (tap, c)]
//
// One task owns, for one slice of the pixel blocks, some panels of output channels times a block of source channels
// with all taps. Per block of pixels it stages the source channel-innermost, so that columns of one tap lie contiguous,
// packs grad_output once and each panel of columns once, and multiplies them all. The slices depend on the shape only
// and are added in their order.
#pragma once

#include "cpu/kernels/conv2d_forward.h"

namespace cnnfast::CNNFAST_ISA {

// Columns (tap, c) and output channels of a task: its sums, packed gradients and staged source stay in L2.
constexpr int64_t kGradColumns = 576, kGradChannels = 128, kGradPanels = 22;

static inline int64_t column_panels(const GatherConv& conv, int64_t channels, int64_t width) {
  return ceil_div(channels * conv.taps(), width);
}

template <class A>
struct WeightGradScratch {
  PixelRun* runs;
  LaneRun* lanes;       // runs of columns, of all panels
  int64_t* panel_runs;  // where each panel's runs begin
  int64_t* pixels;      // of each pixel, its place in the staged source
  A *staged, *panel, *gradient;
  size_t bytes;

  WeightGradScratch(void* memory, const GatherConv& conv, const WeightGradPlan& plan) {
    Scratch scratch(memory);
    const int64_t columns = column_panels(conv, plan.channels, kPanelWidth<A>);
    runs = scratch.take<PixelRun>(max_runs(conv, plan.pixels));
    lanes = scratch.take<LaneRun>(columns + conv.taps());
    panel_runs = scratch.take<int64_t>(columns + 1);
    pixels = scratch.take<int64_t>(plan.pixels.size);
    staged = scratch.take<A>(plan.channels * max_staged(conv, plan.pixels) + kPanelWidth<A>);
    panel = scratch.take<A>((plan.pixels.size + 1) * kPanelWidth<A>);
    gradient = scratch.take<A>(ceil_div(plan.panels, plan.panel_blocks) * kTileRows * plan.pixels.size);
    bytes = scratch.used();
  }
};

template <class A>
static WeightGradPlan weight_grad_plan(const GatherConv& conv) {
  WeightGradPlan plan{};
  const int64_t taps = max(conv.taps(), int64_t{1});
  plan.pixels = cut_pixels(conv, kDepth, 1);
  plan.channels = max(even_part(conv.C, max(min(kGradColumns / taps, kGradChannels), int64_t{1})), int64_t{1});
  plan.channel_blocks = ceil_div(conv.C, plan.channels);
  plan.panels = RowPanels(conv.M).count;
  plan.panel_blocks = max(ceil_div(plan.panels, kGradPanels), int64_t{1});
  plan.blocks = conv.G * plan.panel_blocks * plan.channel_blocks;
  plan.block_size =
      ceil_div(plan.panels, plan.panel_blocks) * kTileSize<A> * column_panels(conv, plan.channels, kPanelWidth<A>);
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
};

// Columns (r, s, c) cut at panel boundaries and where taps are not staged side by side; returns the number of panels.
template <class A>
static int64_t columns_to_panels(const WeightGradScratch<A>& scratch, const GatherConv& conv,
                                 const StagedLayout& layout, int64_t channels, int64_t pixel_stride) {
  int64_t column = 0, at = 0;
  scratch.panel_runs[0] = 0;
  for (int64_t i = 0; i < conv.h.taps; ++i) {
    for (int64_t j = 0; j < conv.w.taps; ++j) {
      for (int64_t c = 0; c < channels;) {
        const int64_t lane = column % kPanelWidth<A>, count = min(channels - c, kPanelWidth<A> - lane);
        const int64_t offset = layout.tap(i, j) * pixel_stride + c;
        LaneRun* previous = scratch.lanes + at - 1;
        if (lane > 0 && previous->offset + previous->count == offset) {
          previous->count += count;
        } else {
          scratch.lanes[at++] = {lane, count, offset};
        }
        scratch.panel_runs[column / kPanelWidth<A> + 1] = at;
        column += count;
        c += count;
      }
    }
  }
  return ceil_div(column, kPanelWidth<A>);
}

// to[q * kRows + k] = from[channel k, pixel q]
template <int kRows, class T>
static void copy_rows(const T* from, const Strides& stride, int64_t pixels, Compute<T>* to) {
  for (int64_t q = 0; q < pixels; ++q, from += stride.w, to += kRows) {
#pragma GCC unroll 6
    for (int k = 0; k < kRows; ++k) to[k] = load(from + k * stride.c);
  }
}

template <class T>
static void weight_grad(const GatherConv& conv, const WeightGradPlan& plan, View<const T> input,
                        View<const T> grad_output, Compute<T>* partial, void* memory, int64_t task) {
  using A = Compute<T>;
  const WeightGradBlock block(conv, plan, task % plan.blocks);
  const int64_t slice = task / plan.blocks;
  const RowPanels panels(conv.M);
  const WeightGradScratch<A> s(memory, conv, plan);
  const StagedLayout layout(conv, plan.pixels);
  const int64_t column_panel_count = columns_to_panels(s, conv, layout, block.channels, block.channels);
  A* sums = partial + task * plan.block_size;

  input.data += (block.g * conv.C + block.c) * input.stride.c;
  grad_output.data += block.g * conv.M * grad_output.stride.c;
  const int64_t begin = slice * plan.pixels.count / plan.slices;
  const int64_t end = (slice + 1) * plan.pixels.count / plan.slices;
  for (int64_t pixel_block = begin; pixel_block < end; ++pixel_block) {
    const int64_t run_count = block_runs(conv, plan.pixels, pixel_block, s.runs);
    const int64_t depth = pixels_of(s.runs, run_count);
    stage(conv, plan.pixels, s.runs, run_count, input, block.channels, s.staged, 1, block.channels);
    for (const PixelRun* run = s.runs; run < s.runs + run_count; ++run) {
      for (int64_t q = 0; q < run->count; ++q) s.pixels[run->first + q] = (run->staged + q) * block.channels;
      for (int64_t p = block.panel_begin; p < block.panel_end; ++p) {
        const int64_t m = panels.begin(p), rows = panels.begin(p + 1) - m;
        A* to = s.gradient + (p - block.panel_begin) * kTileRows * depth + run->first * rows;
        const T* from = grad_output.at(run->n, m, run->i, run->j);
        if (rows == kTileRows) {  // a trip count known to the compiler
          copy_rows<kTileRows>(from, grad_output.stride, run->count, to);
        } else {
          copy_block(from, grad_output.stride.c, grad_output.stride.w, to, rows, rows, run->count);
        }
      }
    }
    A* tile = sums;
    for (int64_t column = 0; column < column_panel_count; ++column) {
      const int64_t first = s.panel_runs[column];
      pack_panel(s.staged, s.pixels, depth, s.lanes + first, s.panel_runs[column + 1] - first, s.panel);
      for (int64_t p = block.panel_begin; p < block.panel_end; ++p, tile += kTileSize<A>) {
        multiply(panels.begin(p + 1) - panels.begin(p), depth, s.gradient + (p - block.panel_begin) * kTileRows * depth,
                 s.panel, tile, pixel_block > begin);
      }
    }
  }
}

template <class T>
static void weight_grad_finish(const GatherConv& conv, const WeightGradPlan& plan, Compute<T>* partial,
                               GatherWeight<T> grad_weight, int64_t index) {
  using A = Compute<T>;
  const WeightGradBlock block(conv, plan, index);
  const RowPanels panels(conv.M);
  A* sums = partial + index * plan.block_size;
  for (int64_t slice = 1; slice < plan.slices; ++slice) {
    const A* more = sums + slice * plan.blocks * plan.block_size;
    for (int64_t i = 0; i < plan.block_size; ++i) sums[i] += more[i];
  }
  // Row by row, so that the writes stay within one output channel's weights.
  const int64_t panel_count = block.panel_end - block.panel_begin;
  for (int64_t p = block.panel_begin; p < block.panel_end; ++p) {
    for (int64_t m = panels.begin(p); m < panels.begin(p + 1); ++m) {
      const A* row = sums + (p - block.panel_begin) * kTileSize<A> + (m - panels.begin(p)) * kPanelWidth<A>;
      int64_t column = 0;
      for (int64_t r = 0; r < conv.h.taps; ++r) {
        for (int64_t s = 0; s < conv.w.taps; ++s) {
          T* to = grad_weight.data + block.g * grad_weight.group + m * grad_weight.m + block.c * grad_weight.c +
                  r * grad_weight.r + s * grad_weight.s;
          for (int64_t c = 0; c < block.channels; ++c, ++column, to += grad_weight.c) {
            store(to, row[column / kPanelWidth<A> * panel_count * kTileSize<A> + column % kPanelWidth<A>]);
          }
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
  return {gather_plan<T>, pack_weight<T>,        gather<T>,   weight_grad_plan<Compute<T>>,
          weight_grad<T>,          weight_grad_finish<T>, bias_grad<T>};
}

}  // namespace cnnfast::CNNFAST_ISA
