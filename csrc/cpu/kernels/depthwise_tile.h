// The register tile of depthwise convolution, 4 pixels below one another of 2 columns, and the rows of outputs that it
// walks, in a slab (depthwise_slab.h) or in an image of channels_last:
//
//   out[i][j] = bias + sum over r, s of weight[r][s] * x[i * step + r][j * step + s]
//
// where every element is a register of neighbouring channels. What several outputs of a tile read is loaded once. An
// image is walked in the order of memory, all channels of a pixel after one another, as the processor's prefetching
// wants it; so weights are read anew for each tile, from the first cache level. Padding is skipped, not multiplied.
#pragma once

#include "cpu/kernels/constant.h"

namespace cnnfast::CNNFAST_ISA {

constexpr int kDepthwiseRows = 4, kDepthwisePixels = 2;

// Of the rows (or columns) that a tile meets, those inside the source; beyond them lies its padding.
struct Inside {
  int64_t first, last;

  Inside(int64_t place, int64_t size) : first(-place), last(size - place) {}
  bool has(int64_t i) const { return i >= first && i < last; }
  bool has_all(int64_t count) const { return first <= 0 && count <= last; }
};

// An image of H x W or a slab of it, and a place in it, inside or not, from which something is read. Strides in
// elements.
template <class A>
struct DepthwiseSource {
  const A* data;  // of (0, 0)
  int64_t pitch, pixel;
  int64_t row, column, H, W;

  const A* place() const { return data + row * pitch + column * pixel; }
  DepthwiseSource moved(int64_t rows, int64_t columns) const {
    return {data, pitch, pixel, row + rows, column + columns, H, W};
  }
};

// Some rows of outputs.
template <class A>
struct DepthwiseRows {
  DepthwiseSource<A> x;  // at the first tap of the first output
  int64_t step_w, S;
  const A* weight;       // bias, then the taps column by column, in registers
  int64_t weight_block;  // from one register of channels to the next
  Activation activation;
  A* out;
  int64_t out_pitch, out_pixel;
  int64_t rows, columns, channels;  // at least as many channels as a register has lanes
};

// Adds kColumns columns of kR taps to sums of pixels kStep apart; x and `weight` are at the first of these taps.
template <int kR, int kColumns, int kStep, bool kEdge, int kRows, int kPixels, class A>
CNNFAST_INLINE void add_taps(const DepthwiseRows<A>& job, const A* x, const A* weight, const Inside& rows,
                             const Inside& columns, int64_t column, Vec<A> (&sum)[kPixels][kRows]) {
  Vec<A> w[kColumns][kR];
  unroll<kColumns>([&](auto s) CNNFAST_INLINE_LAMBDA {
    unroll<kR>([&](auto r) CNNFAST_INLINE_LAMBDA {
      w[s.value][r.value] = load_vec(weight + (s.value * kR + r.value) * kLanes<A>);
    });
  });
  unroll<(kRows - 1) * kStep + kR>([&](auto i) CNNFAST_INLINE_LAMBDA {
    if (!kEdge || rows.has(i.value)) {
      unroll<(kPixels - 1) * kStep + kColumns>([&](auto k) CNNFAST_INLINE_LAMBDA {
        if (kEdge && !columns.has(column + k.value)) return;
        Vec<A> value = load_vec(x + k.value * job.x.pixel);
        pin(value);
        unroll<kPixels>([&](auto j) CNNFAST_INLINE_LAMBDA {
          unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
            constexpr int r = i.value - t.value * kStep, s = k.value - j.value * kStep;
            if constexpr (r >= 0 && r < kR && s >= 0 && s < kColumns) sum[j.value][t.value] += w[s][r] * value;
          });
        });
      });
    }
    x += job.x.pitch;
  });
}

// kRows x kPixels outputs of a register of channels. kS is 0 where the kernel is of more than 9 taps.
template <int kR, int kS, int kStep, bool kEdge, int kRows, int kPixels, class A>
CNNFAST_INLINE void depthwise_tile(const DepthwiseRows<A>& job, const A* x, const A* weight, const Inside& rows,
                                   const Inside& columns, A* out) {
  Vec<A> sum[kPixels][kRows];
  unroll<kPixels>([&](auto j) CNNFAST_INLINE_LAMBDA {
    unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA { sum[j.value][t.value] = load_vec(weight); });
  });
  weight += kLanes<A>;
  if constexpr (kS > 0) {
    add_taps<kR, kS, kStep, kEdge>(job, x, weight, rows, columns, 0, sum);
  } else {
    for (int64_t s = 0; s < job.S; ++s)
      add_taps<kR, 1, kStep, kEdge>(job, x + s * job.x.pixel, weight + s * kR * kLanes<A>, rows, columns, s, sum);
  }
  const bool clips = job.activation != Activation::none;
  const Clip<A> clip(job.activation);
  unroll<kPixels>([&](auto j) CNNFAST_INLINE_LAMBDA {
    unroll<kRows>([&](auto t) CNNFAST_INLINE_LAMBDA {
      const Vec<A> y = sum[j.value][t.value];
      store_vec(out + t.value * job.out_pitch + j.value * job.out_pixel, clips ? clip(y) : y);
    });
  });
}

// Outputs [i, i + kRows) x [j, j + kPixels) of all channels, the last register of which overlaps its neighbour.
template <int kR, int kS, int kStep, int kRows, int kPixels, class A>
static void depthwise_pixels(const DepthwiseRows<A>& job, int64_t i, int64_t j) {
  const DepthwiseSource<A> window = job.x.moved(i * kStep, j * job.step_w);
  const Inside rows(window.row, job.x.H), columns(window.column, job.x.W);
  const A* x = window.place();
  A* out = job.out + i * job.out_pitch + j * job.out_pixel;
  const auto all_channels = [&](auto edge) CNNFAST_INLINE_LAMBDA {
    const A* weight = job.weight;
    for (int64_t c = 0; c < job.channels; c += kLanes<A>, weight += job.weight_block) {
      c = min(c, job.channels - kLanes<A>);
      depthwise_tile<kR, kS, kStep, edge.value != 0, kRows, kPixels>(job, x + c, weight, rows, columns, out + c);
    }
  };
  // The smaller tiles are of odd ends: one body for them all.
  if constexpr (kRows == kDepthwiseRows && kPixels == kDepthwisePixels) {
    if (rows.has_all((kRows - 1) * kStep + kR) && columns.has_all((kPixels - 1) * kStep + job.S))
      return all_channels(Constant<0>{});
  }
  all_channels(Constant<1>{});
}

template <int kR, int kS, int kStep, class A>
static void depthwise_rows(const DepthwiseRows<A>& job) {
  const auto row = [&](auto rows, auto pixels, int64_t i) {
    for (int64_t j = 0; j < job.columns; j += pixels.value)
      depthwise_pixels<kR, kS, kStep, rows.value, pixels.value>(job, i, min(j, job.columns - pixels.value));
  };
  const auto all_rows = [&](auto rows) {
    // The last tile begins earlier, and computes some outputs again.
    for (int64_t i = 0; i < job.rows; i += rows.value) {
      const int64_t first = min(i, job.rows - rows.value);
      if (job.columns < kDepthwisePixels || job.step_w != kStep) {
        row(rows, Constant<1>{}, first);
      } else {
        row(rows, Constant<kDepthwisePixels>{}, first);
      }
    }
  };
  if (job.rows < kDepthwiseRows) {
    all_rows(Constant<1>{});
  } else {
    all_rows(Constant<kDepthwiseRows>{});
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

}  // namespace cnnfast::CNNFAST_ISA
