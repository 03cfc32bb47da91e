// GatherConv by `implicit_gemm` for sources whose channels are neighbours (channels_last): nothing is staged or packed
// but the weights.
//
//   output[pixel, m] = sum over (tap, c) of row[tap][pixel][c] * weight[(tap, c), m]
//
// One task owns a block of pixels for some panels of output channels in one group. A panel of weights, as deep as half
// of L1, is multiplied with all pixels of the block. Vectorised along output channels.
#pragma once

#include "cpu/conv2d.h"
#include "cpu/kernels/bands.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/row_table.h"
#include "cpu/kernels/scratch.h"
#include "cpu/kernels/staging.h"

namespace cnnfast::CNNFAST_ISA {

// A task's pixels, 256 channels deep, fill a fifth of L2. A multiple of the heights of both tiles, 6 and 4.
constexpr int64_t kIndirectPixels = 192, kIndirectRows = 12;

// The (tap, c) that are summed at a time.
struct DepthBlock {
  int64_t tap, taps, c, channels;
  int64_t before;  // how many come before it

  int64_t depth() const { return taps * channels; }
};

template <class Body>
static void for_each_depth_block(const GatherConv& conv, const GatherPlan& plan, const Body& body) {
  if (conv.taps() * conv.C == 0) return body(DepthBlock{0, 0, 0, 0, 0});
  for (int64_t tap = 0; tap < conv.taps(); tap += plan.taps) {
    const int64_t taps = min(plan.taps, conv.taps() - tap);
    for (int64_t c = 0; c < conv.C; c += plan.channels)
      body(DepthBlock{tap, taps, c, min(plan.channels, conv.C - c), tap * conv.C + taps * c});
  }
}

template <class A>
struct IndirectScratch : private Scratch {
  RowTable<A> table;
  int64_t* outputs;  // of each pixel, its offset in the output
  size_t bytes;

  IndirectScratch(void* memory, const GatherConv& conv, const GatherPlan& plan)
      : Scratch(memory), table(*this, conv, plan.pixels), outputs(take<int64_t>(plan.pixels.size)), bytes(used()) {}
};

template <class A>
static GatherPlan indirect_plan(const GatherConv& conv) {
  GatherPlan plan{};
  plan.indirect = true;
  const LanePanels<A> panels(conv.M);
  const int64_t pixels = conv.pixels(), taps = max(conv.taps(), int64_t{1});
  plan.channels = max(even_part(conv.C, kDepth), int64_t{1});
  plan.taps = max(kDepth / plan.channels, int64_t{1});
  plan.panels = panels.count;
  plan.panel_blocks = 1;
  plan.packed_weight = conv.G * panels.padded() * conv.C * conv.taps();

  // Few pixels: heavy weights are divided, each task streaming its own; else the pixels.
  const int64_t products = conv.M * conv.C * taps * pixels;
  const int64_t wanted = ceil_div(max(min(kTasks, conv.G * products / kTaskProducts), int64_t{1}), conv.G);
  int64_t size = min(kIndirectPixels, max(round_up(even_part(pixels, kIndirectPixels), kIndirectRows), kIndirectRows));
  const int64_t count = max(ceil_div(pixels, size), int64_t{1});
  if (count < wanted && conv.M * conv.C * taps * static_cast<int64_t>(sizeof(A)) > int64_t{1} << 18)
    plan.panel_blocks = max(min(plan.panels, ceil_div(wanted, count)), int64_t{1});
  if (count * plan.panel_blocks < wanted)
    size = min(size, max(round_up(ceil_div(pixels * plan.panel_blocks, wanted), kIndirectRows), kIndirectRows));
  plan.pixels = {size, ceil_div(pixels, size), 0};
  plan.tasks = conv.M == 0 ? 0 : conv.G * plan.panel_blocks * plan.pixels.count;
  plan.scratch_bytes = IndirectScratch<A>(nullptr, conv, plan).bytes;
  return plan;
}

// Packed weights: [group][depth block][panel][(tap, c)][lane]. Where a panel starts:
template <class A>
static int64_t indirect_offset(const GatherConv& conv, int64_t g, const DepthBlock& block, int64_t panel) {
  const LanePanels<A> panels(conv.M);
  return (g * conv.C * conv.taps() + block.before) * panels.padded() + panels.begin(panel) * block.depth();
}

template <class T>
static void pack_indirect_weight(const GatherConv& conv, const GatherPlan& plan, GatherWeight<const T> weight,
                                 Compute<T>* packed, int64_t index) {
  using A = Compute<T>;
  const int64_t g = index / plan.panels, panel = index % plan.panels;
  const LanePanels<A> panels(conv.M);
  const int64_t width = panels.width(panel) * kLanes<A>, lanes = panels.lanes(panel);
  for_each_depth_block(conv, plan, [&](const DepthBlock& block) {
    A* to = packed + indirect_offset<A>(conv, g, block, panel);
    for (int64_t tap = block.tap; tap < block.tap + block.taps; ++tap, to += block.channels * width) {
      const int64_t r = conv.h.first_tap + tap / conv.w.taps * conv.h.tap_stride;
      const int64_t s = conv.w.first_tap + tap % conv.w.taps * conv.w.tap_stride;
      const T* from = weight.data + g * weight.group + panels.begin(panel) * weight.m + block.c * weight.c +
                      r * weight.r + s * weight.s;
      for (int64_t c = 0; c < block.channels && lanes < width; ++c)
        for (int64_t lane = lanes; lane < width; ++lane) to[c * width + lane] = 0;
      copy_block(from, weight.m, weight.c, to, width, lanes, block.channels);
    }
  });
}

// Where the pixels of a block lie in the output; returns their number.
static int64_t find_outputs(const GatherConv& conv, const PixelBlocks& blocks, int64_t block, const Strides& output,
                            int64_t* offsets) {
  const int64_t P = conv.h.outputs, Q = conv.w.outputs;
  const int64_t begin = block * blocks.size, end = min(begin + blocks.size, conv.pixels());
  for (int64_t pixel = begin, count; pixel < end; pixel += count) {
    const int64_t y = pixel / Q, j = pixel % Q, first = y / P * output.n + y % P * output.h + j * output.w;
    count = min(Q - j, end - pixel);
    for (int64_t q = 0; q < count; ++q) offsets[pixel - begin + q] = first + q * output.w;
  }
  return end - begin;
}

// What becomes of a tile's sums.
template <class A>
struct IndirectOutput {
  A* data;  // of the panel's first channel
  const int64_t* offsets;
  int64_t lanes;
  bool accumulate;
  Activation clip;
  const A* bias;      // null: none
  const A* residual;  // the same
};

// kRows pixels times a panel of kVectors registers. `rows` are those of the block's first tap, `taps` rows apart.
// kAhead: the next tile's rows, of this tap, are asked for meanwhile, a line of each at a time.
template <class A, int kRows, int kVectors, bool kAhead>
static void indirect_tile(const DepthBlock& block, const A* const* rows, int64_t tap_distance, const A* weight,
                          const IndirectOutput<A>& out) {
  Vec<A> sum[kRows][kVectors] = {};
  for (int64_t tap = 0; tap < block.taps; ++tap, rows += tap_distance) {
    const A* row[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) row[r] = rows[r] + block.c;
    const auto multiply = [&](int64_t begin, int64_t end) CNNFAST_INLINE_LAMBDA {
#pragma GCC unroll 2
      for (int64_t c = begin; c < end; ++c, weight += kVectors * kLanes<A>)
        multiply_step([&](int r) CNNFAST_INLINE_LAMBDA { return row[r][c]; }, weight, sum);
    };
    int64_t c = 0;
    if constexpr (kAhead) {
      constexpr int64_t kLine = kLineBytes / sizeof(A);
      for (; c + kLine <= block.channels; c += kLine) {
        for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows[kRows + r] + block.c + c);
        multiply(c, c + kLine);
      }
    }
    multiply(c, block.channels);
  }
  const Clip<A> clip(out.clip);
  const auto finish = [&](auto load, auto store) CNNFAST_INLINE_LAMBDA {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lanes = min<int64_t>(out.lanes - v * kLanes<A>, kLanes<A>);
      const Vec<A> shift = out.bias == nullptr ? Vec<A>{} : load(out.bias + v * kLanes<A>, lanes);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        A* to = out.data + out.offsets[r] + v * kLanes<A>;
        Vec<A> x = sum[r][v] + shift;
        if (out.accumulate) x = load(to, lanes) + x;
        if (out.residual != nullptr) x += load(out.residual + out.offsets[r] + v * kLanes<A>, lanes);
        store(to, clip(x), lanes);
      }
    }
  };
  if (out.lanes == kVectors * kLanes<A>) {
    finish([](const A* p, int64_t) CNNFAST_INLINE_LAMBDA { return load_vec(p); },
           [](A* p, Vec<A> x, int64_t) CNNFAST_INLINE_LAMBDA { store_vec(p, x); });
  } else {
    finish([](const A* p, int64_t lanes) CNNFAST_INLINE_LAMBDA { return load_partial(p, lanes); },
           [](A* p, Vec<A> x, int64_t lanes) CNNFAST_INLINE_LAMBDA { store_partial(p, x, lanes); });
  }
}

// All pixels of a block times one panel. `next` is the panel that comes next, which is asked for meanwhile: of few
// pixels, a task is done with its weights sooner than they come from memory. With the `first` panel, pixels are read
// for the first time: a row is too short for the processor to see where it is going.
template <class A, int kRows, int kVectors>
static void indirect_panel(const DepthBlock& block, const A* const* rows, int64_t pixels, int64_t tap_distance,
                           const A* weight, const A* next, bool first, IndirectOutput<A> out) {
  constexpr int64_t kLine = kLineBytes / sizeof(A);
  const int64_t ahead = round_up(block.depth() * kVectors * kLanes<A> / max(pixels / kRows, int64_t{1}), kLine);
  for (; pixels >= kRows; pixels -= kRows, rows += kRows, out.offsets += kRows, next += ahead) {
    for (int64_t i = 0; i < ahead; i += kLine) __builtin_prefetch(next + i, 0, 2);
    if (first && pixels >= 2 * kRows) {
      indirect_tile<A, kRows, kVectors, true>(block, rows, tap_distance, weight, out);
    } else {
      indirect_tile<A, kRows, kVectors, false>(block, rows, tap_distance, weight, out);
    }
  }
  if (pixels > 0) {
    with_constant<1, kRows>(pixels, [&](auto count) {
      indirect_tile<A, count.value, kVectors, false>(block, rows, tap_distance, weight, out);
    });
  }
}

// What is left to do of a panel's outputs: pixels that are `pitch` apart as one.
template <class A>
static void finish_pixels(const Epilogue<A>& rest, const IndirectOutput<A>& out, int64_t pixels, int64_t pitch) {
  if (rest.in_registers()) return;
  for (int64_t i = 0, count; i < pixels; i += count) {
    for (count = 1; i + count < pixels && out.offsets[i + count] == out.offsets[i + count - 1] + pitch;) ++count;
    finish(rest, out.data, out.data + out.offsets[i], {count, pitch, out.lanes, 1});
  }
}

template <class A>
static void indirect_gather(const GatherConv& conv, const GatherPlan& plan, View<const A> source, const A* packed,
                            const A* bias, const Epilogue<A>& epilogue, View<A> output, void* memory, int64_t task) {
  const int64_t block = task % plan.pixels.count, part = task / plan.pixels.count % plan.panel_blocks;
  const int64_t g = task / plan.pixels.count / plan.panel_blocks;
  const LanePanels<A> panels(conv.M);
  const IndirectScratch<A> s(memory, conv, plan);
  const Epilogue<A> rest = epilogue.activation;  // the residual is added in registers
  source.data += g * conv.C;
  s.table.fill(conv, plan.pixels, block, source);
  const int64_t pixels = find_outputs(conv, plan.pixels, block, output.stride, s.outputs);
  for_each_depth_block(conv, plan, [&](const DepthBlock& depth) {
    const bool last = depth.before + depth.depth() == conv.taps() * conv.C;
    const A* const* rows = s.table.rows + depth.tap * plan.pixels.size;
    const int64_t begin = part * panels.count / plan.panel_blocks, end = (part + 1) * panels.count / plan.panel_blocks;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t m = g * conv.M + panels.begin(p);
      const A* weight = packed + indirect_offset<A>(conv, g, depth, p);
      const A* next = weight + (p + 1 < end ? panels.width(p) * kLanes<A> : panels.padded()) * depth.depth();
      if (p + 1 == end) next -= (panels.begin(p) - panels.begin(begin)) * depth.depth();
      const IndirectOutput<A> out{output.data + m,
                                  s.outputs,
                                  panels.lanes(p),
                                  depth.before > 0,
                                  last ? rest.clip() : Activation::none,
                                  last && bias != nullptr ? bias + m : nullptr,
                                  last ? epilogue.from(m).residual : nullptr};
      with_constant<1, 3>(panels.width(p), [&](auto vectors) {
        indirect_panel<A, vectors.value == 3 ? 4 : kTileRows, vectors.value>(depth, rows, pixels, plan.pixels.size,
                                                                             weight, next, p == begin, out);
      });
      if (last) finish_pixels(rest, out, pixels, output.stride.w);
    }
  });
}

}  // namespace cnnfast::CNNFAST_ISA
