// Direct convolution + bias + ReLU + max-pool for windows other than 2x2 with stride 2, which may overlap, reach into a
// padding or over the edge.
//
// The un-pooled map under a band of pooled rows is computed into scratch that stays in the second-level cache,
// [row][column][channels]; the windows are then taken from there, by registers of channels. Rows that the windows of
// two bands share are computed by both, so shapes with many of those go the general way. The map's sums are those of
// direct_channels.h, for pixels in a row.
#pragma once

#include "cpu/conv2d_relu_max_pool2d.h"
#include "cpu/kernels/direct_channels.h"

namespace cnnfast::CNNFAST_ISA {

// Pixels of a tile, so that there are 8 to 12 sums: enough to hide the latency of a multiply-add.
template <int kVectors>
constexpr int kMapPixels = kVectors == 1   ? 8
                           : kVectors == 2 ? 6
                                           : 4;
constexpr int64_t kMostMapPixels = kMapPixels<1>;

// The part of the map under pooled rows [top, top + band), and the padded input under that.
struct MapBand {
  int64_t begin, rows;  // rows of the map
  int64_t columns;      // at least one tile's
  PaddedPlanes padded;

  MapBand(const Conv2dShape& conv, const Pool2dShape& pool, int64_t top, int64_t band)
      : begin(max<int64_t>(0, top * pool.stride_h - pool.pad_h)),
        rows(max<int64_t>(
            0,
            min(conv.P, (top + band - 1) * pool.stride_h - pool.pad_h + (pool.R - 1) * pool.dilation_h + 1) - begin)),
        columns(max(conv.Q, kMostMapPixels)),
        padded{max<int64_t>(0, (rows - 1) * conv.stride_h + (conv.R - 1) * conv.dilation_h + 1),
               (columns - 1) * conv.stride_w + (conv.S - 1) * conv.dilation_w + 1} {}

  // Of a band of that many pooled rows, wherever it lies: rows of the map, floats of the input and of the map.
  static int64_t most_rows(const Conv2dShape& conv, const Pool2dShape& pool, int64_t band) {
    return min(conv.P, (band - 1) * pool.stride_h + (pool.R - 1) * pool.dilation_h + 1);
  }
  static int64_t input_floats(const Conv2dShape& conv, const Pool2dShape& pool, int64_t band) {
    return conv.C * largest(conv, pool, band).padded.plane();
  }
  static int64_t map_floats(const Conv2dShape& conv, const Pool2dShape& pool, int64_t band) {
    const MapBand map = largest(conv, pool, band);
    return map.rows * map.columns * round_up(conv.K, kLanes<float>);
  }

 private:
  static MapBand largest(const Conv2dShape& conv, const Pool2dShape& pool, int64_t band) {
    MapBand map(conv, pool, 0, band);
    map.rows = most_rows(conv, pool, band);
    map.padded.rows = (map.rows - 1) * conv.stride_h + (conv.R - 1) * conv.dilation_h + 1;
    return map;
  }
};

template <int kVectors, int kSize>
void direct_map_block(const Conv2dShape& conv, const MapBand& band, const float* x, const float* weight, float* map,
                      int64_t channels) {
  constexpr int kPixels = kMapPixels<kVectors>;
  for (int64_t i = 0; i < band.rows; ++i, map += band.columns * channels) {
    const float* row = x + i * conv.stride_h * band.padded.pitch;
    for (int64_t j = 0; j < conv.Q; j += kPixels) {
      const int64_t first = min(j, band.columns - kPixels);  // the last tile overlaps its neighbour
      Vec<float> sum[kVectors][kPixels];
      direct_channels_sums<kVectors, kPixels, false, kSize>(conv, row + first * conv.stride_w, band.padded.pitch,
                                                            band.padded.plane(), weight, sum);
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) store_vec(map + (first + p) * channels + v * kLanes<float>, sum[v][p]);
    }
  }
}

// One window, all channels. The first of equal values wins, a NaN over any number and the last NaN over earlier ones.
template <bool kWithCode>
CNNFAST_INLINE void pool_map_window(const Pool2dShape& pool, const float* map, int64_t row_stride, int64_t channels,
                                    Range h, Range w, float* value, uint8_t* code) {
  const Vec<float> zero{};
  for (int64_t k = 0; k < channels; k += kLanes<float>) {
    // Of minus infinity alone a window is clipped, whichever element won.
    Vec<float> best = broadcast(-__builtin_inff());
    Vec<int32_t> winner = broadcast<int32_t>(-1);
    for (int64_t r = h.begin; r < h.end; ++r) {
      const float* at = map + r * pool.dilation_h * row_stride + k;
      for (int64_t s = w.begin; s < w.end; ++s) {
        const Vec<float> z = load_vec(at + s * pool.dilation_w * channels);
        const Vec<int32_t> index = broadcast(static_cast<int32_t>(r * pool.S + s));
        const Vec<int32_t> wins = (z > best) | (z != z);
        best = wins ? z : best;
        winner = wins ? index : winner;
      }
    }
    if (h.begin == h.end || w.begin == w.end) {  // no element: torch's maximum of none, which no ReLU has seen
      store_vec(value + k, best);
      if constexpr (kWithCode) store_low_bytes(code + k, winner);
      continue;
    }
    const Vec<int32_t> clipped = best <= zero;
    store_vec(value + k, clipped ? zero : best);
    if constexpr (kWithCode) store_low_bytes(code + k, winner | clipped);  // all ones is kClipped in the low byte
  }
}

template <bool kWithCode>
void direct_map(const DirectForward& job, int64_t n, int64_t band_index, char* workspace) {
  const Conv2dShape& conv = job.conv;
  const Pool2dShape& pool = job.pool;
  const int64_t top = band_index * job.plan.band, rows = min(job.plan.band, pool.P - top);
  const int64_t channels = round_up(conv.K, kLanes<float>);
  const MapBand band(conv, pool, top, rows);

  float* x = reinterpret_cast<float*>(workspace);
  float* map = x + round_up(MapBand::input_floats(conv, pool, job.plan.band), 16);
  float* value = map + round_up(MapBand::map_floats(conv, pool, job.plan.band), 16);
  uint8_t* code = reinterpret_cast<uint8_t*>(value + round_up(job.plan.band * pool.Q * channels, 16));

  copy_padded(conv, job.input, n, band.begin * conv.stride_h, band.padded, x);
  for_each_channel_block(conv, job.packed_weight, [&](auto vectors, auto size, int64_t k, const float* weight) {
    direct_map_block<vectors.value, size.value>(conv, band, x, weight, map + k, channels);
  });
  const int64_t row_stride = band.columns * channels;
  for (int64_t i = 0, at = 0; i < rows; ++i) {
    const int64_t y = (top + i) * pool.stride_h - pool.pad_h;
    const Range h = window_taps(y, pool.R, pool.dilation_h, conv.P);
    for (int64_t j = 0; j < pool.Q; ++j, at += channels) {
      const int64_t left = j * pool.stride_w - pool.pad_w;
      const Range w = window_taps(left, pool.S, pool.dilation_w, conv.Q);
      pool_map_window<kWithCode>(pool, map + (y - band.begin) * row_stride + left * channels, row_stride, channels, h,
                                 w, value + at, code + at);
    }
  }
  scatter_channels(value, channels, job.output, n, top, rows, pool);
  if constexpr (kWithCode) scatter_channels(code, channels, job.code, n, top, rows, pool);
}

}  // namespace cnnfast::CNNFAST_ISA
