// Contract of the general convolution, algorithm `implicit_gemm`: bodies in kernels/conv2d_forward.h and
// kernels/conv2d_backward_weight.h, launcher in implicit_gemm.cpp.
#pragma once

#include <cstddef>

#include "common/activation.h"
#include "common/gather_conv.h"
#include "common/number.h"

namespace cnnfast {

// The output pixels of a GatherConv, cut into blocks. Narrow maps are numbered through, (n, i, j) row-major, and a
// block is `size` consecutive numbers, across rows and images; rows of at least `size` pixels are cut each for itself.
struct PixelBlocks {
  int64_t size, count;
  int64_t per_row;  // 0: numbered through
};

// What the shape and the layout alone decide about a GatherConv: its tasks, its blocks, its memory.
struct GatherPlan {
  bool indirect;  // kernels/indirect_gather.h
  bool in_place;  // the source's rows are read where they lie: no strides, no padding
  PixelBlocks pixels;
  int64_t channels, channel_blocks;  // source channels summed at a time
  int64_t taps;                      // and taps, if indirect
  int64_t panels, panel_blocks;      // panels of output channels, and the groups of them that are tasks
  int64_t tasks;
  int64_t packed_weight;  // elements, all groups
  size_t scratch_bytes;   // of one task
};

// The same for the weight gradient: tasks are (slice of the pixel blocks, group, block of M, block of C).
struct WeightGradPlan {
  bool indirect;  // the source is read in place: kernels/row_table.h
  PixelBlocks pixels;
  int64_t channels, channel_blocks;
  int64_t panels, panel_blocks;
  int64_t panel_distance;  // of packed columns, in elements; 0: one panel is packed at a time
  int64_t slices;          // partial sums over the pixel blocks
  int64_t blocks;          // G * panel_blocks * channel_blocks
  int64_t block_size;      // elements of one block's partial sum
  size_t scratch_bytes;
};

template <class T>
struct Conv2dKernels {
  using Sum = Compute<T>;

  GatherPlan (*plan)(const GatherConv& conv, const Strides& source, const Strides& output);
  // Packs panel `index` of [0, G * panels) into its place in `packed`.
  void (*pack_weight)(const GatherConv& conv, const GatherPlan& plan, GatherWeight<const T> weight, Sum* packed,
                      int64_t index);
  // Computes one task's part of output (whose view is over the G * M channels and the [i, j] grid). bias may be null.
  void (*gather)(const GatherConv& conv, const GatherPlan& plan, View<const T> source, const Sum* packed, const T* bias,
                 const Epilogue<T>& epilogue, View<T> output, void* scratch, int64_t task);

  WeightGradPlan (*weight_grad_plan)(const GatherConv& forward, const Strides& input);
  // Sums one slice of one block (task = slice * blocks + block) into partial[task * block_size ...).
  void (*weight_grad)(const GatherConv& forward, const WeightGradPlan& plan, View<const T> input,
                      View<const T> grad_output, Sum* partial, void* scratch, int64_t task);
  // Adds up the slices of one block, in order, and writes them to the gradient.
  void (*weight_grad_finish)(const GatherConv& forward, const WeightGradPlan& plan, Sum* partial,
                             GatherWeight<T> grad_weight, int64_t block);

  // sum[k] = sum over images [begin, end) and all pixels of grad_output, for k in [k_begin, k_end).
  void (*bias_grad)(View<const T> grad_output, int64_t P, int64_t Q, int64_t begin, int64_t end, int64_t k_begin,
                    int64_t k_end, Sum* sum);
};

}  // namespace cnnfast
